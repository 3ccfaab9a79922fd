// franz-go's round trip: produce in each compression with idempotence, read in a group, resume it, delete records.
//
// usage: franz BOOTSTRAP. Prints one line for each thing tried; ends with 1 where anything failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const count = 50

var failed bool

func tried(what string, work func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := work(ctx); err != nil {
		failed = true
		fmt.Printf("franz-go: %s: FAILED: %v\n", what, err)
		return
	}
	fmt.Printf("franz-go: %s: ok\n", what)
}

func main() {
	bootstrap := os.Args[1]
	run := fmt.Sprintf("franz-%d", time.Now().UnixNano())
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap))
	if err != nil {
		panic(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	tried("create a topic", func(ctx context.Context) error {
		_, err := admin.CreateTopic(ctx, 3, -1, nil, run)
		return err
	})
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	for name, codec := range codecs {
		tried("produce with idempotence, "+name, func(ctx context.Context) error {
			producer, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ProducerBatchCompression(codec))
			if err != nil {
				return err
			}
			defer producer.Close()
			var records []*kgo.Record
			for n := 0; n < count; n++ {
				key, value := fmt.Sprintf("k%d", n), fmt.Sprintf("v%d", n)
				records = append(records, &kgo.Record{Topic: run, Key: []byte(key), Value: []byte(value)})
			}
			return producer.ProduceSync(ctx, records...).FirstErr()
		})
	}
	read := func(ctx context.Context, wanted int) error {
		member, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ConsumerGroup(run), kgo.ConsumeTopics(run),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
		if err != nil {
			return err
		}
		defer member.CloseAllowingRebalance()
		for found := 0; found < wanted; {
			fetches := member.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				return err
			}
			found += fetches.NumRecords()
			if found > wanted {
				return errors.New("records came twice")
			}
		}
		return member.CommitUncommittedOffsets(ctx)
	}
	tried("read all in a group and commit", func(ctx context.Context) error { return read(ctx, len(codecs)*count) })
	tried("resume where the group has committed", func(ctx context.Context) error {
		results := client.ProduceSync(ctx, &kgo.Record{Topic: run, Value: []byte("last")})
		if err := results.FirstErr(); err != nil {
			return err
		}
		return read(ctx, 1)
	})
	tried("offsets by time and by epoch", func(ctx context.Context) error {
		if offsets, err := admin.ListOffsetsAfterMilli(ctx, 1, run); err != nil || offsets.Error() != nil {
			return errors.Join(err, offsets.Error())
		}
		var asked kadm.OffsetForLeaderEpochRequest
		asked.Add(run, 0, 1)
		ends, err := admin.OffetForLeaderEpoch(ctx, asked)
		if err != nil {
			return err
		}
		for _, partitions := range ends {
			for _, end := range partitions {
				if end.Err != nil {
					return end.Err
				}
				if end.EndOffset <= 0 {
					return fmt.Errorf("epoch 1 ends at %d", end.EndOffset)
				}
			}
		}
		return nil
	})
	tried("delete records", func(ctx context.Context) error {
		ends, err := admin.ListEndOffsets(ctx, run)
		if err != nil {
			return err
		}
		deleted, err := admin.DeleteRecords(ctx, ends.Offsets())
		if err != nil {
			return err
		}
		if err := deleted.Error(); err != nil {
			return err
		}
		starts, err := admin.ListStartOffsets(ctx, run)
		if err != nil {
			return err
		}
		starts.Each(func(start kadm.ListedOffset) {
			if end, _ := ends.Lookup(run, start.Partition); end.Offset != start.Offset {
				err = fmt.Errorf("partition %d begins at %d, not at %d", start.Partition, start.Offset, end.Offset)
			}
		})
		return err
	})
	tried("describe and delete the group, delete the topic", func(ctx context.Context) error {
		if _, err := admin.DescribeGroups(ctx, run); err != nil {
			return err
		}
		if _, err := admin.DeleteGroup(ctx, run); err != nil {
			return err
		}
		_, err := admin.DeleteTopic(ctx, run)
		return err
	})
	if failed {
		os.Exit(1)
	}
}
