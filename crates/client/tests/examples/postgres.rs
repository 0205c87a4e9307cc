//! The sink into Postgres, with a server of the test's own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::harness::{Broker, Load, Process, kill_in_turn, pause, wait_for};

/// Debian keeps the server's binaries off the path.
fn binaries() -> Option<PathBuf> {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let debian = debian.flatten().map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(debian);
    let has = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
    all.filter(has).last()
}

/// A server in a temporary directory that listens on a socket there and on no port. Immediately down when dropped.
struct Postgres {
    _server: Process,
    dir: TempDir,
}

impl Postgres {
    fn start(binaries: &Path) -> Postgres {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        // Postgres refuses to run as root: then it runs as the user that its package has made, who must get into the directory.
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let command = |binary: &str| {
            let binary = binaries.join(binary);
            if !root {
                return Command::new(binary);
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            command.arg(binary);
            command
        };
        if root {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut made = command("initdb");
        made.args(["--auth=trust", "--username=app", "--no-sync", "-D"]);
        made.arg(&data).current_dir(dir.path());
        let made = made.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let mut server = command("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(dir.path());
        // It is the sinks that are killed: nothing here needs its syncs.
        server
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .current_dir(dir.path());
        let mut server = Process::start(server, dir.path().join("postgres.out"));
        wait_for("Postgres to serve", || {
            let said = server.says(1);
            said.contains("ready to accept connections").then_some(())
        });
        Postgres {
            _server: server,
            dir,
        }
    }

    fn address(&self) -> String {
        format!(
            "host={} user=app dbname=postgres",
            self.dir.path().display()
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_in_postgres_once_although_sinks_are_killed() {
    let Some(binaries) = binaries() else {
        // Past the capture of the test's output.
        let line = "SKIPPED: the sink into Postgres: no `initdb` and `postgres` on the path or in /usr/lib/postgresql\n";
        return std::io::stderr().write_all(line.as_bytes()).unwrap();
    };
    let postgres = Postgres::start(&binaries);
    let mut broker = Broker::start();
    let load = Load::start(broker.topic("orders", 4).await, "orders");
    let address = postgres.address();
    let mut sinks = kill_in_turn(&mut broker, "sink_postgres", &["orders", &address], 4);
    for _ in 0..2 {
        let [one, other] = &mut sinks;
        pause(one, other);
        sinks.reverse();
    }
    let sent = load.stop().await as i64;

    let (database, connection) = tokio_postgres::connect(&address, NoTls).await.unwrap();
    tokio::spawn(connection);
    let runtime = tokio::runtime::Handle::current();
    let number = |query: &str| -> i64 {
        let row = database.query_one(query, &[]);
        let row = tokio::task::block_in_place(|| runtime.block_on(row));
        row.unwrap().get(0)
    };
    wait_for("all records", || {
        (number("SELECT count(DISTINCT value) FROM records") >= sent).then_some(())
    });
    for sink in sinks {
        sink.stop();
    }
    assert_eq!(number("SELECT count(*) FROM records"), sent);
    let distinct =
        "SELECT count(*) FROM (SELECT DISTINCT topic, part, \"offset\" FROM records) AS one";
    assert_eq!(number(distinct), sent);
    assert_eq!(number("SELECT sum(next)::bigint FROM positions"), sent);
}
