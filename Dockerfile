# One image for every part; the command says which: delivery_web, delivery_worker, delivery_beat or migrate.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DELIVERY_VAR=/var/lib/delivery

WORKDIR /srv/site
COPY requirements-run.txt .
RUN pip install --no-cache-dir -r requirements-run.txt

# A named volume takes over owner and mode of the directory that it is mounted on.
RUN useradd --system --home-dir /srv/site site \
    && install -d -o site -g site -m 700 /var/lib/delivery
COPY manage.py ./
COPY project ./project
COPY delivery ./delivery
RUN python -m compileall -q project delivery

USER site
VOLUME /var/lib/delivery
EXPOSE 8000
CMD ["python", "manage.py", "delivery_web", "--host", "0.0.0.0"]
