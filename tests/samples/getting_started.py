"""The Python samples of Getting Started, one after the other, with the body that the page leaves out."""

import json
import os

import requests

api = os.environ["EVERPUT_API"]
headers = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "X-API-KEY": os.environ["EVERPUT_KEY"],
}


def put(path: str, body: dict) -> dict:
    r = requests.put(f"{api}{path}", headers=headers, data=json.dumps(body), timeout=30)
    return {"status": r.status_code, "type": r.headers["content-type"], "body": r.json()}


queue = put("/v1/queues", {"name": "myapp.io/deletion-request-queue"})
again = put("/v1/queues", {"name": "myapp.io/deletion-request-queue"})
queue_id = queue["body"]["queue"]["id"]
listener = put(
    f"/v1/queues/{queue_id}/listeners",
    {
        "name": "myapp.io/deletion-request-listener",
        "notify_url": "https://myapp.io/deletion/listener",
        "liveness_url": "https://myapp.io/live",
    },
)
message = put(f"/v1/queues/{queue_id}/messages", {"data": '{ "userId": "481512342" }'})
print(json.dumps({"queue": queue, "again": again, "listener": listener, "message": message}))
