# syntax=docker/dockerfile:1

# CPU:   docker build -t unimetric .
# CUDA:  docker build -t unimetric:cuda --build-arg TORCH_INDEX_URL=https://pypi.org/simple .
# Use:   docs/deployment.md

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
# The CPU build of torch takes 1 GB, the CUDA build 6. CUDA's libraries come with it; the host has the driver.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG EXTRAS=offline,search,export
RUN python -m venv /opt/unimetric
ENV PATH=/opt/unimetric/bin:$PATH
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX_URL" "torch>=2.7" "torchvision>=0.22"
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
# No version to pin: this is the package itself.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[$EXTRAS]"

FROM python:${PYTHON}-slim-bookworm
ENV PATH=/opt/unimetric/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    UNIMETRIC_CACHE=/cache \
    HF_HOME=/cache/huggingface
# A volume takes its owner from the folder in the image.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin unimetric \
    && install --directory --owner=unimetric --group=unimetric /models /index /cache
COPY --from=build /opt/unimetric /opt/unimetric
USER 10001
WORKDIR /index
VOLUME ["/models", "/index", "/cache"]
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["unimetric"]
CMD ["serve", "/index/catalogue.db", "--host", "0.0.0.0", "--read_token"]
