//! The sink into SQLite.

use rusqlite::Connection;

use crate::harness::{Broker, Load, kill_in_turn, pause, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_in_sqlite_once_although_sinks_and_broker_are_killed() {
    let mut broker = Broker::start();
    let load = Load::start(broker.topic("orders", 4).await, "orders");
    let path = broker.path("orders.db");
    let args = ["orders", path.to_str().unwrap()];
    let mut sinks = kill_in_turn(&mut broker, "sink_sqlite", &args, 4);
    broker.kill_and_restart();
    for sink in &mut sinks {
        let lines = sink.said().lines().count();
        sink.says(lines + 5);
    }
    for _ in 0..2 {
        let [one, other] = &mut sinks;
        pause(one, other);
        sinks.reverse();
    }
    let sent = load.stop().await as i64;

    let database = Connection::open(&path).unwrap();
    let number = |query: &str| -> i64 { database.query_row(query, (), |row| row.get(0)).unwrap() };
    wait_for("all records", || {
        (number("SELECT count(DISTINCT value) FROM records") >= sent).then_some(())
    });
    for sink in sinks {
        sink.stop();
    }
    assert_eq!(number("SELECT count(*) FROM records"), sent);
    // Offsets are dense: that each is there once, and the highest is the last, means that none is missing and none is double.
    let distinct = "SELECT count(*) FROM (SELECT DISTINCT topic, part, offset FROM records)";
    assert_eq!(number(distinct), sent);
    assert_eq!(number("SELECT sum(next) FROM positions"), sent);
    let highest =
        "SELECT sum(last) FROM (SELECT max(offset) + 1 AS last FROM records GROUP BY part)";
    assert_eq!(number(highest), sent);
}
