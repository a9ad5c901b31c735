# The command line with everything:
#
#   docker build --build-arg VERSION="$(git describe --tags)" -t totalvi .
#   docker run --rm -v "$PWD:/data" totalvi run filtered_feature_bc_matrix.h5 -o results
#
# Loops that are compiled at the first use are kept in the home folder, which any user of the container may write to. Docker
# forgets it with the container, unless it is given a volume: `-v totalvi-cache:/home/totalvi/.cache`. Apptainer takes the
# home folder of its user.
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
ENV PATH=/opt/totalvi/bin:$PATH HOME=/home/totalvi
RUN useradd --create-home totalvi && mkdir /home/totalvi/.cache && chmod 1777 /home/totalvi /home/totalvi/.cache
USER totalvi
WORKDIR /data
ENTRYPOINT ["totalvi"]
CMD ["--help"]
