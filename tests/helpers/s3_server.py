"""An S3 server: python s3_server.py prints two addresses of it, the second of which answers slowly, and the key and the
secret that it knows. It ends with its standard input."""

import json
import sys
import threading
import time

import boto3  # pyright: ignore[reportMissingImports]
from moto.server import (  # pyright: ignore[reportMissingImports]
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import make_server  # pyright: ignore[reportMissingImports]

application = DomainDispatcherApplication(create_backend_app)


def slowly(environ, start_response):
    time.sleep(0.3)
    return application(environ, start_response)


servers = [make_server("127.0.0.1", 0, each, threaded=True) for each in (application, slowly)]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
addresses = [f"http://127.0.0.1:{server.server_port}" for server in servers]
where = {"endpoint_url": addresses[0], "region_name": "us-east-1"}
boto3.client("s3", **where).create_bucket(Bucket="bucket")
iam = boto3.client("iam", **where)
iam.create_user(UserName="user")
every = {"Effect": "Allow", "Action": "*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [every]})
iam.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy)
key = iam.create_access_key(UserName="user")["AccessKey"]
print(*addresses, key["AccessKeyId"], key["SecretAccessKey"], flush=True)
sys.stdin.read()
