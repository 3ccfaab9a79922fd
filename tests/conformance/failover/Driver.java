import java.time.Duration;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Apache Kafka's Java client as a driver of failover.py. What it is called with and what it prints is in driver.py. */
public class Driver {
    static final int BATCH = 40;
    static volatile boolean stopping = false;

    static synchronized void say(Object... words) {
        String line = Arrays.stream(words).map(String::valueOf).collect(Collectors.joining(" "));
        System.out.println(line.replace('\n', ' '));
        System.out.flush();
    }

    static String why(Exception error) {
        return error.getClass().getSimpleName() + ": " + error.getMessage();
    }

    static Properties of(String bootstrap, Object... settings) {
        Properties all = new Properties();
        all.put("bootstrap.servers", bootstrap);
        for (int at = 0; at < settings.length; at += 2) {
            all.put(settings[at], settings[at + 1]);
        }
        return all;
    }

    static KafkaProducer<String, String> producerOf(Properties settings) {
        return new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
    }

    static void produce(String bootstrap, String topic, int partitions, int rate) throws InterruptedException {
        KafkaProducer<String, String> producer = producerOf(of(bootstrap, "acks", "all", "enable.idempotence", "true"));
        long begun = System.nanoTime();
        for (int number = 0; !stopping; number++) {
            long early = begun + number * 1_000_000_000L / rate - System.nanoTime();
            if (early > 0) {
                Thread.sleep(early / 1_000_000, (int) (early % 1_000_000));
            }
            int sent = number;
            producer.send(new ProducerRecord<>(topic, number % partitions, null, "" + number), (placed, error) -> {
                if (error == null) {
                    say("acked", sent, placed.partition(), placed.offset());
                } else {
                    say("failed", sent, why(error));
                }
            });
        }
        producer.flush();
        producer.close();
    }

    static KafkaConsumer<String, String> consumerOf(String topic, Properties settings) {
        settings.put("auto.offset.reset", "earliest");
        settings.put("auto.commit.interval.ms", "1000");
        if ("consumer".equals(System.getenv("GROUP_PROTOCOL"))) {
            settings.put("group.protocol", "consumer");
        } else {
            settings.put("session.timeout.ms", "10000");
        }
        KafkaConsumer<String, String> consumer =
            new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
        Set<Integer> held = new TreeSet<>();
        consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
            public void onPartitionsRevoked(Collection<TopicPartition> revoked) {
                revoked.forEach(place -> held.remove(place.partition()));
                holds();
            }

            public void onPartitionsAssigned(Collection<TopicPartition> assigned) {
                assigned.forEach(place -> held.add(place.partition()));
                holds();
            }

            void holds() {
                say("holds", held.stream().map(String::valueOf).collect(Collectors.joining(" ")));
            }
        });
        return consumer;
    }

    static void consume(String bootstrap, String topic, String group) {
        KafkaConsumer<String, String> consumer = consumerOf(topic, of(bootstrap, "group.id", group));
        while (!stopping) {
            for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(500))) {
                say("read", record.partition(), record.offset(), record.value());
            }
        }
        consumer.close();
    }

    /** Once more where the client says that it has only run out of its time: the call goes on where it was. */
    static void retried(Runnable step) {
        for (int attempt = 0; ; attempt++) {
            try {
                step.run();
                return;
            } catch (TimeoutException error) {
                if (attempt == 2) {
                    throw error;
                }
                say("note", why(error));
            }
        }
    }

    static KafkaProducer<String, String> transactionalOf(String bootstrap, String id) {
        KafkaProducer<String, String> producer = producerOf(of(bootstrap, "transactional.id", id));
        retried(producer::initTransactions);
        return producer;
    }

    static void rewind(KafkaConsumer<String, String> consumer) {
        Map<TopicPartition, OffsetAndMetadata> committed = consumer.committed(consumer.assignment());
        committed.forEach((place, offset) -> consumer.seek(place, offset == null ? 0 : offset.offset()));
    }

    static void transact(String bootstrap, String source, String target, int partitions, String group, String id) {
        KafkaConsumer<String, String> consumer = consumerOf(source, of(bootstrap, "group.id", group, "enable.auto.commit",
            "false", "isolation.level", "read_committed", "max.poll.records", "" + BATCH));
        KafkaProducer<String, String> producer = transactionalOf(bootstrap, id);
        for (int transaction = 0; ; ) {
            var batch = consumer.poll(Duration.ofMillis(500));
            if (batch.isEmpty()) {
                if (stopping) {
                    break;
                }
                continue;
            }
            boolean ending = false;
            try {
                producer.beginTransaction();
                say("begun", transaction, 2 * batch.count());
                Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
                for (ConsumerRecord<String, String> record : batch) {
                    int number = Integer.parseInt(record.value());
                    for (int copy = 0; copy < 2; copy++) {
                        String value = transaction + "/" + number + "/" + copy;
                        producer.send(new ProducerRecord<>(target, (number + copy) % partitions, null, value));
                    }
                    TopicPartition place = new TopicPartition(source, record.partition());
                    offsets.put(place, new OffsetAndMetadata(record.offset() + 1));
                }
                KafkaProducer<String, String> current = producer;
                retried(() -> current.sendOffsetsToTransaction(offsets, consumer.groupMetadata()));
                if (transaction % 4 == 3) {
                    producer.flush();
                    retried(producer::abortTransaction);
                    say("aborted", transaction);
                    rewind(consumer);
                } else {
                    ending = true;
                    retried(producer::commitTransaction);
                    say("committed", transaction);
                }
            } catch (KafkaException error) {
                try {
                    retried(producer::abortTransaction);
                    say("aborted", transaction);
                    say("note", why(error));
                } catch (KafkaException fatal) {
                    say(ending ? "unknown" : "aborted", transaction, why(error));
                    producer.close(Duration.ZERO);
                    producer = transactionalOf(bootstrap, id);
                }
                rewind(consumer);
            }
            transaction++;
        }
        producer.close();
        consumer.close();
    }

    public static void main(String[] words) throws Exception {
        Thread watch = new Thread(() -> {
            try {
                System.in.readAllBytes();
            } catch (java.io.IOException error) {
                say("note", why(error));
            }
            stopping = true;
        });
        watch.setDaemon(true);
        watch.start();
        try {
            switch (words[0]) {
                case "produce" -> produce(words[1], words[2], Integer.parseInt(words[3]), Integer.parseInt(words[4]));
                case "consume" -> consume(words[1], words[2], words[3]);
                case "transact" -> transact(words[1], words[2], words[3], Integer.parseInt(words[4]), words[5], words[6]);
                default -> throw new IllegalArgumentException("no role " + words[0]);
            }
        } catch (Exception error) {
            say("error", why(error));
            System.exit(1);
        }
        say("end");
        System.exit(0);
    }
}
