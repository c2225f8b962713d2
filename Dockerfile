FROM python:3.13.7-slim-bookworm

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY redis_batches redis_batches
COPY lua lua
RUN pip install --no-cache-dir -c constraints.txt .
COPY examples examples

RUN useradd --create-home app
USER app
CMD ["celery", "-A", "examples.clicks", "worker", "--loglevel", "INFO"]
