# The command line with everything:
#
#   docker build --build-arg VERSION="$(git describe --tags)" -t totalvi .
#   docker run --rm -v "$PWD:/data" totalvi run filtered_feature_bc_matrix.h5 -o results
#
# By default PyTorch is the build for NVIDIA GPUs (`docker run --gpus all`). For its much smaller build for processors, give
# the index that pytorch.org names for it: `--build-arg TORCH_INDEX=...`.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=""
ARG VERSION=""
COPY . /source
RUN python -m venv /opt/totalvi \
 && export ${VERSION:+SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION} \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[all]"

FROM python:3.13-slim
COPY --from=build /opt/totalvi /opt/totalvi
# numba and matplotlib keep files here, which any user may write
ENV PATH=/opt/totalvi/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home totalvi
USER totalvi
WORKDIR /data
ENTRYPOINT ["totalvi"]
CMD ["--help"]
