"""Logging in under TLS with a name and a password: each public client, by each mechanism; and that a wrong password is refused.

usage: login.py BOOTSTRAP CA_FILE USER PASSWORD

Prints one line for each thing tried: "ok" or "FAILED", and why. Ends with 1 where anything failed.
"""

import asyncio
import ssl
import sys

BOOTSTRAP, CA, USER, PASSWORD = sys.argv[1:]
failed = False


def confluent(mechanism, password):
    from confluent_kafka.admin import AdminClient

    return AdminClient(
        {
            "bootstrap.servers": BOOTSTRAP,
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": CA,
            "sasl.mechanism": mechanism,
            "sasl.username": USER,
            "sasl.password": password,
            "log_level": 0,
        }
    ).list_topics(timeout=10).brokers


def kafka_python(mechanism, password):
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(
        bootstrap_servers=BOOTSTRAP,
        security_protocol="SASL_SSL",
        ssl_cafile=CA,
        sasl_mechanism=mechanism,
        sasl_plain_username=USER,
        sasl_plain_password=password,
        bootstrap_timeout_ms=10000,
    )
    return admin.describe_cluster()


def aiokafka(mechanism, password):
    from aiokafka.admin import AIOKafkaAdminClient

    async def ask():
        admin = AIOKafkaAdminClient(
            bootstrap_servers=BOOTSTRAP,
            security_protocol="SASL_SSL",
            ssl_context=ssl.create_default_context(cafile=CA),
            sasl_mechanism=mechanism,
            sasl_plain_username=USER,
            sasl_plain_password=password,
        )
        await asyncio.wait_for(admin.start(), 10)
        try:
            return await admin.list_topics() is not None
        finally:
            await admin.close()

    return asyncio.run(ask())


for client in [confluent, kafka_python, aiokafka]:
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]:
        for password, wanted in [(PASSWORD, True), (PASSWORD + "x", False)]:
            what = f"{client.__name__}: {mechanism}, {'the' if wanted else 'a wrong'} password"
            try:
                admitted, why = bool(client(mechanism, password)), "nothing was answered"
            except Exception as error:
                admitted, why = False, f"{type(error).__name__}: {error}"[:200]
            if admitted == wanted:
                print(f"{what}: ok", flush=True)
            else:
                failed = True
                print(f"{what}: FAILED: {why}", flush=True)
sys.exit(failed)
