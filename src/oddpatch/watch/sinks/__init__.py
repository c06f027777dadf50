"""Whom a watch tells: a webhook, an MQTT broker, a folder of pictures."""

from pathlib import Path

from oddpatch.watch.events import Sink
from oddpatch.watch.sinks.pictures import Pictures
from oddpatch.watch.sinks.sender import Sender

#: Folder of the alarms that wait, unless another is chosen.
QUEUE = Path("watch")
#: Megabytes of pictures, unless others are chosen.
MEGABYTES = 1000


def make_sinks(
    webhook: str | None = None,
    mqtt: str | None = None,
    pictures: str | Path | None = None,
    pictures_mb: int = MEGABYTES,
    queue: str | Path = QUEUE,
) -> list[Sink]:
    """The sinks that are asked for, at work. Close each in the end.

    Args:
        webhook: address that alarms are posted to, see `Webhook`.
        mqtt: address of a broker, see `Mqtt`.
        pictures: folder of pictures, see `Pictures`.
        pictures_mb: megabytes of all pictures together.
        queue: folder of the alarms that wait. One watch uses it at a time.

    Raises:
        ConfigError, DataError, ResourceError: one cannot be used as it is; none is at work then.
    """
    album = None if pictures is None else Pictures(Path(pictures), pictures_mb)
    picture = None if album is None else album.picture
    sinks: list[Sender | Pictures] = [] if album is None else [album]
    if webhook is not None:
        from oddpatch.watch.sinks.webhook import Webhook

        sinks.append(Webhook(webhook, Path(queue) / "webhook.sqlite", picture=picture))
    if mqtt is not None:
        from oddpatch.watch.sinks.mqtt import Mqtt

        sinks.append(Mqtt(mqtt, Path(queue) / "mqtt.sqlite", picture=picture))
    for sink in sinks:
        sink.start()
    return list(sinks)
