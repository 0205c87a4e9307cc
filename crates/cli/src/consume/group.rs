//! `timberline consume --group`: as a member of a group.
//!
//! What is printed is flushed before more is asked for, so that nothing is committed that nobody has seen.

use std::io::{self, Write};
use std::time::Duration;

use timberline_client::{
    Client, Error, GroupConsumer, GroupOptions, OffsetReset, Position, RecordBatch, TopicPartition,
};

use super::{ConsumeArgs, Printer};
use crate::failure::Failure;
use crate::values::From;

/// How often a member that waits looks whether it has reached the ends.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn run(args: &ConsumeArgs, client: &Client, group: &str) -> Result<(), Failure> {
    let reset = match args.from {
        From::Beginning => OffsetReset::Earliest,
        From::End => OffsetReset::Latest,
        From::Offset(_) | From::Time(_) => {
            return Err(Failure::usage(
                "a group goes on where it stands; --from says where a new one begins, and is beginning or end",
            )
            .next("Move a group with `timberline group seek`."));
        }
    };
    let options = GroupOptions::new(group)
        .topics([&args.topic])
        .instance_id(args.instance.clone())
        .offset_reset(reset);
    let ends = match args.until_end {
        true => Some(ends(client, &args.topic).await?),
        false => None,
    };
    let mut member = Member {
        consumer: client.group_consumer(options).await?,
        printer: Printer::new(args),
        left: args.count.unwrap_or(u64::MAX),
        ends,
        args,
    };
    member.printer.begin()?;
    let outcome = member.run().await;
    // What was read before a failure is output all the same.
    member.printer.end()?;
    member.consumer.close().await?;
    outcome
}

/// The ends of a topic's partitions, by their numbers.
async fn ends(client: &Client, topic: &str) -> Result<Vec<i64>, Failure> {
    let info = client.metadata(topic).await?;
    let asked = info.partitions.iter().map(|one| one.partition);
    let asked: Vec<_> = asked.map(|number| (number, Position::Latest)).collect();
    let found = client.admin().list_offsets(topic, &asked).await?;
    Ok(found.iter().map(|info| info.offset).collect())
}

struct Member<'a> {
    consumer: GroupConsumer,
    printer: Printer<'a>,
    /// Records still wanted.
    left: u64,
    ends: Option<Vec<i64>>,
    args: &'a ConsumeArgs,
}

impl Member<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        while self.left > 0 && !self.is_at_the_ends() {
            match self.wait().await? {
                Some(Ok(batch)) => self.print(&batch).await?,
                Some(Err(error)) => self.step_over(error).await?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits for a batch; `None` when the user has seen enough, or the ends are reached.
    async fn wait(&mut self) -> Result<Option<Result<RecordBatch, Error>>, Failure> {
        let patience = self.args.timeout.unwrap_or(Duration::MAX);
        let starved = tokio::time::sleep(patience);
        tokio::pin!(starved);
        loop {
            tokio::select! {
                biased;
                next = self.consumer.recv_batch() => return Ok(Some(next)),
                () = &mut starved => {
                    return Err(Failure::timed_out(format!("no record came for {patience:?}"))
                        .next("Leave --timeout away to wait, or use --until-end to read what is there."));
                }
                _ = tokio::signal::ctrl_c() => return Ok(None),
                () = tokio::time::sleep(LOOK_EVERY), if self.ends.is_some() => {
                    if self.is_at_the_ends() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether all that this member holds was read up to where it ended at the start.
    fn is_at_the_ends(&self) -> bool {
        let Some(ends) = &self.ends else { return false };
        let held = self.consumer.assignment();
        let is_read = |one: &TopicPartition| {
            let position = self.consumer.position(&one.topic, one.partition);
            let end = ends.get(one.partition as usize).copied().unwrap_or(0);
            position.is_some_and(|position| position >= end)
        };
        !held.is_empty() && held.iter().all(is_read)
    }

    async fn print(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let partition = batch.partition();
        for record in batch.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return self.step_over(error).await,
            };
            self.printer.print(batch.topic(), partition, &record)?;
            self.left -= 1;
            if self.left == 0 {
                self.printer.flush()?;
                // The rest of the batch is left to whoever comes next.
                let position = Position::Offset(record.offset + 1);
                self.consumer
                    .seek(batch.topic(), partition, position)
                    .await?;
                return Ok(());
            }
        }
        self.printer.flush()?;
        Ok(())
    }

    /// Goes on behind damage, if that was asked for.
    async fn step_over(&mut self, error: Error) -> Result<(), Failure> {
        let place = match &error {
            Error::DataDamaged {
                topic,
                partition,
                to,
                ..
            }
            | Error::CorruptBatch {
                topic,
                partition,
                to,
                ..
            } if self.args.skip_damaged => (topic.clone(), *partition, *to),
            _ => return Err(error.into()),
        };
        let _ = writeln!(io::stderr(), "warning: {error}");
        let (topic, partition, to) = place;
        let position = Position::Offset(to);
        self.consumer.seek(&topic, partition, position).await?;
        Ok(())
    }
}
