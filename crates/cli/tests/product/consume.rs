//! Where reading begins and ends.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::harness::{Broker, finish, run, signal, wait_for};

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis()
}

#[test]
fn from_a_time() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--partitions", "2"])
        .ok();
    broker.run_with(&["produce", "t"], "old1\nold2\n").ok();
    std::thread::sleep(Duration::from_millis(20));
    let time = now_ms();
    std::thread::sleep(Duration::from_millis(20));
    broker.run_with(&["produce", "t", "-p", "0"], "new1\n").ok();
    broker.run_with(&["produce", "t", "-p", "1"], "new2\n").ok();
    let read = |from: &str| {
        let ran = broker
            .run(&["consume", "t", "--from", from, "--until-end"])
            .ok();
        let mut lines: Vec<_> = ran.out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(read(&format!("@{time}")), ["new1", "new2"]);
    let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(time).unwrap());
    let text = broker
        .run(&["consume", "t", "--until-end", "--format", r"%D\n"])
        .ok()
        .out;
    assert!(
        text.lines()
            .all(|line| line.ends_with('Z') && line.len() == 24),
        "{text}"
    );
    assert!(at <= SystemTime::now());
    assert_eq!(read("-1h").len(), 4);
    assert_eq!(read("@0").len(), 4);
    assert_eq!(read("2001-01-01T00:00:00+02:00").len(), 4);
    assert_eq!(read("2201-01-01T00:00:00Z").len(), 0);
    assert_eq!(read("end").len(), 0);
    assert_eq!(read("0").len(), 4);
}

#[test]
fn until_the_ends_of_all_partitions_as_they_were() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--partitions", "6"])
        .ok();
    assert_eq!(broker.run(&["consume", "t", "--until-end"]).ok().out, "");
    assert_eq!(
        broker
            .run(&["consume", "t", "--until-end", "-o", "json"])
            .ok()
            .out,
        "[]\n"
    );
    let lines: String = (0..5000).map(|n| format!("key{n}:value{n}\n")).collect();
    assert_eq!(
        broker
            .run_with(&["produce", "t", "-K", ":"], &lines)
            .ok()
            .out,
        "5000\n"
    );
    let read = broker
        .run(&["consume", "t", "--until-end", "-K", ":"])
        .ok()
        .out;
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&read), sorted(&lines));
    assert_eq!(
        broker
            .run(&["consume", "t", "--count", "7"])
            .ok()
            .out
            .lines()
            .count(),
        7
    );
    assert_eq!(
        broker
            .run(&["consume", "t", "--tail", "2", "--until-end"])
            .ok()
            .out
            .lines()
            .count(),
        12
    );
    let two = broker
        .run(&[
            "consume",
            "t",
            "--partitions",
            "1,3",
            "--until-end",
            "--format",
            r"%p\n",
        ])
        .ok()
        .out;
    assert!(two.lines().all(|line| line == "1" || line == "3") && two.lines().count() > 100);
    // Offsets within a partition rise one by one.
    let mut next = [0_i64; 6];
    for record in broker
        .run(&["consume", "t", "--until-end", "-o", "jsonl"])
        .ok()
        .json_lines()
    {
        let partition = usize::try_from(record["partition"].as_i64().unwrap()).unwrap();
        assert_eq!(record["offset"], next[partition]);
        next[partition] += 1;
    }
}

#[test]
fn it_follows_the_end_and_gives_up_only_when_told() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    broker
        .run(&["consume", "t", "--timeout", "200ms"])
        .fails(4, &["no record came", "NO_ANSWER", "--until-end"]);
    let tail = broker
        .command(["consume", "t", "--from", "end", "--count", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Produced until it is there to hear: what came before its start is not printed.
    let mut sent = 0;
    let mut tail = Some(tail);
    let ran = wait_for("the tail", || {
        broker
            .run_with(&["produce", "t"], format!("line {sent}\n"))
            .ok();
        sent += 1;
        let child = tail.as_mut()?;
        child.try_wait().unwrap()?;
        Some(finish(tail.take()?))
    });
    let lines: Vec<_> = ran.ok().out.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2);
    let number = |line: &str| line.strip_prefix("line ").unwrap().parse::<u32>().unwrap();
    assert_eq!(number(&lines[0]) + 1, number(&lines[1]));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    broker
        .run_with(&["produce", "t"], "x\n".repeat(200_000))
        .ok();
    let mut child = broker
        .command(["consume", "t", "--until-end"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut few = [0; 10];
    stdout.read_exact(&mut few).unwrap();
    drop(stdout);
    let ran = finish(child);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let broker = Broker::start();
    for (flags, part) in [
        (&["--from", "yesterday"][..], "RFC 3339"),
        (&["--from", "2026-01-01T00:00:00"], "zone"),
        (&["--format", "%z"], "%z"),
        (&["--raw", "-o", "json"], "cannot be used"),
        (&["--delimiter", "x"], "--raw"),
    ] {
        let mut args = vec!["consume", "t"];
        args.extend(flags);
        run(broker.command(args), b"").fails(2, &[part]);
    }
}

#[test]
fn with_an_end_in_sight_a_broker_is_not_waited_for_forever() {
    let mut broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    // More than is fetched ahead, so that the end is out of reach once the broker is gone.
    broker
        .run(&["bench", "produce", "t", "-n", "64000", "-s", "1KiB"])
        .ok();
    for end in [&["--until-end"][..], &["--count", "1000000"]] {
        let mut command = broker.command(["consume", "t", "--raw", "--request-timeout", "1s"]);
        let mut child = command
            .args(end)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 10];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut first).unwrap();
        broker.kill();
        let ran = finish(child).fails(4, &["no contact for 1s", "UNREACHABLE", "next:"]);
        assert_eq!(ran.err.matches("lost contact").count(), 1, "{}", ran.err);
        assert!(ran.bytes.len() < 64_000 << 10);
        broker.spawn(&[]);
    }
}

#[test]
fn a_tail_reports_an_outage_and_reads_on_behind_it() {
    let mut broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    broker.run_with(&["produce", "t"], "before\n").ok();
    let mut child = broker
        .command(["consume", "t", "--request-timeout", "500ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    broker.kill();
    // Longer than a reader with an end would wait.
    std::thread::sleep(Duration::from_secs(2));
    broker.spawn(&[]);
    broker.run_with(&["produce", "t"], "after\n").ok();
    assert_eq!(lines.next().unwrap().unwrap(), "after");
    signal(child.id(), Signal::INT);
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.err.matches("lost contact").count(), 1, "{}", ran.err);
}
