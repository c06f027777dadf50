"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that uploads and downloads models."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Its models by name, each a list of commits (files by name); the last is `main`."""

    def __init__(self):
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}  # of large files, by SHA-256
        self.requests: list[str] = []
        self.address = ""
        self.status = 0  # if not 0, all that it answers

    def commit(self, repo, revision):
        """Number of a commit; None if there is no such revision."""
        commits = self.repos[repo]
        names = {sha(number): number for number in range(len(commits))} | {"main": len(commits) - 1}
        return names.get(revision)


def sha(number):
    return f"{number:040x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args): ...

    def answer(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code, status=404):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body, parts = self.body(), path.strip("/").split("/")
        if self.hub.status:
            return self.answer(status=self.hub.status)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            known = name in self.hub.repos
            self.hub.repos.setdefault(name, [{}])
            return self.answer({"url": f"{self.hub.address}/{name}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if parts[0] == "objects":
            if self.command == "PUT":
                self.hub.objects[parts[1]] = body
            return self.answer(self.hub.objects.get(parts[1], b""))
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        if repo not in self.hub.repos:
            return self.refuse("RepoNotFound")
        if parts[0] == "api":
            return self.api(repo, parts[4:], body)
        if parts[2] == "info":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.address}/objects/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        number = self.hub.commit(repo, parts[3])  # resolve/REVISION/FILE
        content = self.hub.repos[repo][number].get("/".join(parts[4:]))
        if content is None:
            return self.refuse("EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=sha(number))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def api(self, repo, rest, body):
        commits = self.hub.repos[repo]
        action, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        number = self.hub.commit(repo, revision)
        if number is None:
            return self.refuse("RevisionNotFound")
        if action == "revision":
            return self.answer(
                {"id": repo, "sha": sha(number), "siblings": [{"rfilename": n} for n in commits[number]]}
            )
        if action == "tree":
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in commits[number].items()
                ]
            )
        if action == "preupload":
            return self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        assert action == "commit", rest
        files = dict(commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commits.append(files)
        oid = sha(len(commits) - 1)
        return self.answer({"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid})


@contextlib.contextmanager
def serving():
    """The stand-in, on loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
