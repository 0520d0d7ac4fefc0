# docker build -t stn . && docker run -it stn        (PyTorch with CUDA, some 10 GB; --gpus all shows it the GPU)
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /stn
COPY . .
RUN make setup
CMD ["bash"]
