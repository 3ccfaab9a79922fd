// franz-go as a driver of failover.py. What it is called with and what it prints is in driver.py.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const batch = 40

var written sync.Mutex

func say(words ...any) {
	written.Lock()
	defer written.Unlock()
	line := strings.TrimSuffix(fmt.Sprintln(words...), "\n")
	fmt.Println(strings.ReplaceAll(line, "\n", " "))
}

func produce(stopping context.Context, bootstrap, topic string, partitions, rate int) error {
	producer, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()))
	if err != nil {
		return err
	}
	defer producer.Close()
	begun := time.Now()
	for number := 0; ; number++ {
		due := begun.Add(time.Duration(number) * time.Second / time.Duration(rate))
		select {
		case <-stopping.Done():
			return producer.Flush(context.Background())
		case <-time.After(time.Until(due)):
		}
		record := &kgo.Record{Topic: topic, Partition: int32(number % partitions), Value: []byte(strconv.Itoa(number))}
		producer.Produce(context.Background(), record, func(record *kgo.Record, err error) {
			if err != nil {
				say("failed", number, err)
			} else {
				say("acked", number, record.Partition, record.Offset)
			}
		})
	}
}

func member(bootstrap, topic, group string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(10 * time.Second),
		// Eager, so that what is assigned is all that the member holds.
		kgo.Balancers(kgo.RangeBalancer()),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
			places := assigned[topic]
			sort.Slice(places, func(a, b int) bool { return places[a] < places[b] })
			words := []any{"holds"}
			for _, place := range places {
				words = append(words, place)
			}
			say(words...)
		}),
	}
}

func consume(stopping context.Context, bootstrap, topic, group string) error {
	consumer, err := kgo.NewClient(append(member(bootstrap, topic, group), kgo.AutoCommitInterval(time.Second))...)
	if err != nil {
		return err
	}
	for stopping.Err() == nil {
		fetches := consumer.PollFetches(stopping)
		fetches.EachError(func(_ string, partition int32, err error) {
			if stopping.Err() == nil {
				say("note", partition, err)
			}
		})
		fetches.EachRecord(func(record *kgo.Record) {
			say("read", record.Partition, record.Offset, string(record.Value))
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := consumer.CommitUncommittedOffsets(ctx); err != nil {
		return err
	}
	consumer.Close()
	return nil
}

func transact(stopping context.Context, bootstrap, source, target string, partitions int, group, id string) error {
	options := append(member(bootstrap, source, group), kgo.TransactionalID(id), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequireStableFetchOffsets())
	session, err := kgo.NewGroupTransactSession(options...)
	if err != nil {
		return err
	}
	defer func() { session.Close() }()
	for transaction := 0; ; {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		fetches := session.PollRecords(ctx, batch)
		cancel()
		records := fetches.Records()
		if len(records) == 0 {
			if stopping.Err() != nil {
				return nil
			}
			continue
		}
		if err := session.Begin(); err != nil {
			return err
		}
		say("begun", transaction, 2*len(records))
		var failed kgo.FirstErrPromise
		for _, record := range records {
			number, err := strconv.Atoi(string(record.Value))
			if err != nil {
				return err
			}
			for copy := 0; copy < 2; copy++ {
				value := fmt.Sprintf("%d/%d/%d", transaction, number, copy)
				written := &kgo.Record{Topic: target, Partition: int32((number + copy) % partitions), Value: []byte(value)}
				session.Produce(context.Background(), written, failed.Promise())
			}
		}
		produced := failed.Err()
		wanted := kgo.TransactionEndTry(transaction%4 != 3 && produced == nil)
		// The session rewinds by itself what it has not committed.
		committed, err := session.End(context.Background(), wanted)
		switch {
		case err != nil:
			say("unknown", transaction, err)
			session.Close()
			if session, err = kgo.NewGroupTransactSession(options...); err != nil {
				return err
			}
		case committed:
			say("committed", transaction)
		default:
			say("aborted", transaction)
			if produced != nil {
				say("note", produced)
			} else if wanted {
				say("note", "not committed: the group was rebalanced meanwhile, or the transaction was lost")
			}
		}
		transaction++
	}
}

func main() {
	stopping, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	words := os.Args[1:]
	number := func(at int) int {
		value, err := strconv.Atoi(words[at])
		if err != nil {
			panic(err)
		}
		return value
	}
	var err error
	switch words[0] {
	case "produce":
		err = produce(stopping, words[1], words[2], number(3), number(4))
	case "consume":
		err = consume(stopping, words[1], words[2], words[3])
	case "transact":
		err = transact(stopping, words[1], words[2], words[3], number(4), words[5], words[6])
	default:
		err = fmt.Errorf("no role %s", words[0])
	}
	if err != nil {
		say("error", err)
		os.Exit(1)
	}
	say("end")
}
