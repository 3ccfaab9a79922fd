"""aiokafka as a driver of failover.py; see driver.py."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from driver import BATCH, due, is_to_abort, main, outcomes, say, stopping, why


async def produce(bootstrap, topic, partitions, rate):
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=5)
    await producer.start()

    def told(number):
        def report(sent):
            if sent.exception():
                say("failed", number, why(sent.exception()))
            else:
                say("acked", number, sent.result().partition, sent.result().offset)

        return report

    for number, wait in due(rate):
        await asyncio.sleep(wait)
        sent = await producer.send(topic, b"%d" % number, partition=number % partitions)
        sent.add_done_callback(told(number))
    await producer.flush()
    await producer.stop()


class Says(ConsumerRebalanceListener):
    async def on_partitions_assigned(self, assigned):
        say("holds", *sorted(place.partition for place in assigned))

    async def on_partitions_revoked(self, revoked):
        pass


async def consumer_of(bootstrap, topic, group, **settings):
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        session_timeout_ms=10000,
        auto_commit_interval_ms=1000,
        **settings,
    )
    consumer.subscribe([topic], listener=Says())
    await consumer.start()
    return consumer


async def consume(bootstrap, topic, group):
    consumer = await consumer_of(bootstrap, topic, group)
    while not stopping.is_set():
        for records in (await consumer.getmany(timeout_ms=500)).values():
            for record in records:
                say("read", record.partition, record.offset, record.value.decode())
    await consumer.stop()


async def transact(bootstrap, source, target, partitions, group, transactional_id):
    consumer = await consumer_of(
        bootstrap, source, group, enable_auto_commit=False, isolation_level="read_committed", max_poll_records=BATCH
    )

    async def producer_of():
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, transactional_id=transactional_id, transaction_timeout_ms=60000
        )
        await producer.start()
        return producer

    async def rewind():
        for place in consumer.assignment():
            consumer.seek(place, await consumer.committed(place) or 0)

    producer, transaction = await producer_of(), -1
    while True:
        batch = await consumer.getmany(timeout_ms=500)
        if not batch:
            if stopping.is_set():
                break
            continue
        transaction += 1
        is_ending = False
        try:
            await producer.begin_transaction()
            say("begun", transaction, 2 * sum(len(records) for records in batch.values()))
            sent = []
            for record in (record for records in batch.values() for record in records):
                for partition, value in outcomes(transaction, int(record.value), partitions):
                    sent.append(await producer.send(target, value, partition=partition))
            await asyncio.gather(*sent)
            offsets = {place: records[-1].offset + 1 for place, records in batch.items()}
            await producer.send_offsets_to_transaction(offsets, group)
            if is_to_abort(transaction):
                await producer.abort_transaction()
                say("aborted", transaction)
                await rewind()
            else:
                is_ending = True
                await producer.commit_transaction()
                say("committed", transaction)
        except KafkaError as error:
            try:
                await producer.abort_transaction()
                say("aborted", transaction)
                say("note", why(error))
            except Exception:
                say("unknown" if is_ending else "aborted", transaction, why(error))
                await producer.stop()
                producer = await producer_of()
            await rewind()
    await producer.stop()
    await consumer.stop()


def run(role):
    return lambda *arguments: asyncio.run(role(*arguments))


main({"produce": run(produce), "consume": run(consume), "transact": run(transact)})
