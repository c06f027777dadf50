# `oddpatch` for inspecting images on a CPU: docker build --tag oddpatch . && docker run --rm --volume "$PWD:/work" oddpatch
FROM python:3.12-slim AS build
COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY configs /source/configs
COPY src /source/src
RUN python -m venv /opt/oddpatch
# --build-arg TORCH_INDEX=...: where PyTorch offers its build for CPUs, see docs/install.md.
ARG TORCH_INDEX=
RUN /opt/oddpatch/bin/pip install --no-cache-dir --constraint /source/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
RUN /opt/oddpatch/bin/pip install --no-cache-dir --constraint /source/constraints.txt /source

FROM python:3.12-slim
COPY --from=build /opt/oddpatch /opt/oddpatch
RUN useradd --create-home --uid 1000 oddpatch && mkdir /work && chown oddpatch /work
USER oddpatch
WORKDIR /work
ENV PATH=/opt/oddpatch/bin:$PATH HF_HUB_OFFLINE=1 MPLCONFIGDIR=/tmp
HEALTHCHECK --interval=5m --timeout=60s CMD ["python", "-c", "import oddpatch.inference.detector"]
ENTRYPOINT ["oddpatch"]
CMD ["--help"]
