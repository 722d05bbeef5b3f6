"""A server of object storage that may be killed: ``python object_server.py PORT`` answers as S3 does.

It is moto's, which keeps all in memory; so what it is asked is written into the file MOTO_RECORDER_FILEPATH before it
is done, and a new process does it again first of all.
"""

import base64
import json
import logging
import os
import sys
from pathlib import Path

from moto.moto_api import recorder
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import Client


def main(port: int, record: Path) -> None:
    logging.getLogger("werkzeug").disabled = True
    application = DomainDispatcherApplication(create_backend_app)
    client = Client(application)
    *whole, torn = record.read_bytes().split(b"\n") if record.exists() else [b""]
    for asked in map(json.loads, whole):
        headers = [(name, value) for name, value in asked["headers"].items() if name.lower() != "content-length"]
        content = base64.b64decode(asked["body"]) if asked["body_encoded"] else asked["body"]
        client.open(asked["url"], method=asked["method"], headers=headers, data=content)
    if torn:  # what was not written in full was not done either
        os.truncate(record, record.stat().st_size - len(torn))
    recorder.start_recording()
    make_server("127.0.0.1", port, application, threaded=True).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(os.environ["MOTO_RECORDER_FILEPATH"]))
