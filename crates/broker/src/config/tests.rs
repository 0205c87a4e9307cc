use std::path::PathBuf;

use super::load::apply_file;
use super::*;

fn from_text(text: &str) -> Result<BrokerConfig, String> {
    let mut config = BrokerConfig::default();
    apply_file(&mut config, text, "broker.toml").map_err(|error| error.to_string())?;
    Ok(config)
}

fn refused(text: &str, expected: &[&str]) {
    let error = from_text(text).expect_err(text);
    for part in expected {
        assert!(error.contains(part), "{error:?} does not name {part:?}");
    }
}

#[test]
fn errors_name_key_place_and_nearest_key() {
    refused(
        "[broker]\nid = 1\nrak = 'a'\n",
        &["broker.toml:3", "broker.rak", "broker.rack"],
    );
    refused(
        "\n[brokr]\nid = 1\n",
        &["broker.toml:2", "brokr", "[broker]"],
    );
    refused("data_dir = 'x'\n", &["broker.toml:1", "storage.data_dir"]);
    refused(
        "[broker]\nid = 0\n",
        &["broker.toml:2", "broker.id", "out of range"],
    );
    refused(
        "[broker]\nid = 99999999999999999999\n",
        &["broker.toml:2", "broker.id"],
    );
    refused("[broker]\nid = [1]\n", &["broker.toml:2", "array"]);
    refused(
        "[storage]\njournal_bytes = '1 parsec'\n",
        &["storage.journal_bytes", "units"],
    );
    refused("[storage]\njournal_bytes = '99999999TiB'\n", &["too large"]);
    refused("[listen\n", &["broker.toml:1"]);
    refused(
        "[listen]\ngrpc = 'localhost'\n",
        &["listen.grpc", "IP:PORT"],
    );
    refused("[logging]\nformat = 'xml'\n", &["logging.format", "human"]);
}

#[test]
fn values_carry_units() {
    let config = from_text(
        "[storage]\njournal_bytes = '1GiB'\n[log]\nretention_time = '36h'\nretention_bytes = '10MB'\n[listen]\nhandshake_timeout = '250ms'\n",
    )
    .unwrap();
    assert_eq!(config.storage.journal_bytes, ByteSize(1 << 30));
    assert_eq!(config.log.retention_time, Maybe(Some(Span(36 * 3_600_000))));
    assert_eq!(
        config.log.retention_bytes,
        Maybe(Some(ByteSize(10_000_000)))
    );
    assert_eq!(config.listen.handshake_timeout, Span(250));
    assert_eq!(
        from_text("[log]\nretention_time = 'none'\n")
            .unwrap()
            .log
            .retention_time,
        Maybe(None)
    );
}

#[test]
fn seeds_are_a_list_in_the_file_and_separated_by_commas_elsewhere() {
    let expected = HostPorts(vec!["a:7072".to_owned(), "[::1]:7072".to_owned()]);
    let file = from_text("[cluster]\nseeds = ['a:7072', '[::1]:7072']\n").unwrap();
    assert_eq!(file.cluster.seeds, expected);
    let overrides = Overrides {
        seeds: Some("a:7072, [::1]:7072".to_owned()),
        ..Overrides::default()
    };
    let flags = load(None, [], &overrides).unwrap();
    assert_eq!(flags.cluster.seeds, expected);
    refused(
        "[cluster]\nseeds = ['a']\n",
        &["broker.toml:2", "cluster.seeds", "HOST:PORT"],
    );
    refused(
        "[cluster]\nseeds = [7072]\n",
        &["cluster.seeds", "in quotes"],
    );
    refused(
        "[cluster]\nseeds = 7072\n",
        &["cluster.seeds", "found a integer"],
    );
    let many = vec!["'a:1'"; 65].join(",");
    refused(
        &format!("[cluster]\nseeds = [{many}]\n"),
        &["cluster.seeds", "more than 64"],
    );
}

#[test]
fn every_printed_value_parses_to_itself() {
    for size in [
        0,
        1,
        1000,
        1024,
        1_048_588,
        64 << 20,
        (1 << 31) - 1,
        3 << 40,
    ] {
        assert_eq!(ByteSize(size).to_string().parse(), Ok(ByteSize(size)));
    }
    for span in [0, 1, 999, 1000, 90_000, 3_600_000, 86_400_000 * 7] {
        assert_eq!(Span(span).to_string().parse(), Ok(Span(span)));
    }
}

#[test]
fn environment_goes_over_the_file_and_flags_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.toml");
    std::fs::write(
        &path,
        "[broker]\nid = 2\nrack = 'file'\n[storage]\ndata_dir = 'file'\n",
    )
    .unwrap();
    let environment = [
        ("TIMBERLINE_BROKER__RACK", "env"),
        ("TIMBERLINE_STORAGE__DATA_DIR", "env"),
        ("TIMBERLINE_BOOTSTRAP", "not ours"),
        ("HOME", "/root"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let overrides = Overrides {
        data_dir: Some(PathBuf::from("flag")),
        ..Overrides::default()
    };
    let config = load(Some(&path), environment, &overrides).unwrap();
    assert_eq!(config.broker.id, 2);
    assert_eq!(config.broker.rack, "env");
    assert_eq!(config.storage.data_dir, PathBuf::from("flag"));

    let typo = [("TIMBERLINE_BROKER__RAKC".to_owned(), "x".to_owned())];
    let error = load(None, typo, &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("TIMBERLINE_BROKER__RAKC") && error.contains("broker.rack"),
        "{error}"
    );
}

#[test]
fn an_open_listener_without_tls_needs_consent() {
    let overrides = Overrides {
        grpc_listen: Some("0.0.0.0:7071".parse().unwrap()),
        ..Overrides::default()
    };
    let error = load(None, [], &overrides).unwrap_err().to_string();
    assert!(
        error.contains("listen.grpc") && error.contains("insecure"),
        "{error}"
    );
    let peers = Overrides {
        peer_listen: Some("0.0.0.0:7072".parse().unwrap()),
        ..Overrides::default()
    };
    let error = load(None, [], &peers).unwrap_err().to_string();
    assert!(
        error.contains("listen.peer") && error.contains("insecure"),
        "{error}"
    );
    let consent = [("TIMBERLINE_LISTEN__INSECURE".to_owned(), "true".to_owned())];
    load(None, consent, &overrides).unwrap();
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let set = |pairs: &[(&str, &str)]| {
        let overrides = Overrides {
            set: pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Overrides::default()
        };
        load(None, [], &overrides).map_err(|error| error.to_string())
    };
    assert!(
        set(&[("log.max_message_bytes", "32MiB")])
            .unwrap_err()
            .contains("message_bytes_max")
    );
    assert!(
        set(&[("limits.message_bytes_max", "64MiB")])
            .unwrap_err()
            .contains("in_flight")
    );
    assert!(
        set(&[("listen.grpc_advertise", "nowhere")])
            .unwrap_err()
            .contains("HOST:PORT")
    );
    assert!(set(&[("listen.grpc_advertise", "broker-1.local:7071")]).is_ok());
    assert!(
        set(&[("listen.peer_advertise", "broker-1:0")])
            .unwrap_err()
            .contains("listen.peer_advertise")
    );
    let late = set(&[("cluster.heartbeat_interval", "300ms")]).unwrap_err();
    assert!(
        late.contains("cluster.heartbeat_interval")
            && late.contains("300ms is not shorter than cluster.election_timeout, 300ms"),
        "{late}"
    );
    assert!(
        set(&[
            ("cluster.election_timeout", "1s"),
            ("cluster.heartbeat_interval", "300ms")
        ])
        .is_ok()
    );
    assert!(set(&[("nonsense", "1")]).unwrap_err().contains("nonsense"));
}

#[test]
fn arbitrary_text_never_panics() {
    for text in [
        "\u{0}",
        "[a.b.c]\nd=1",
        "[[broker]]\nid=1",
        "broker=1",
        "[broker]\nid=1.5e300",
        "[broker]\nid=0x_",
        "é=é",
        "[broker]\nid=-9223372036854775809",
    ] {
        assert!(from_text(text).is_err(), "{text:?}");
    }
}

/// Compares a file of the repository with what it is made from; `UPDATE_DOCS=1` writes it.
fn file_is(path: &str, expected: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} has drifted; run the tests with UPDATE_DOCS=1",
        path.display()
    );
}

#[test]
fn the_reference_page_has_not_drifted() {
    file_is("docs/configuration.md", &reference_markdown());
}

#[test]
fn the_default_file_has_not_drifted_and_equals_the_defaults() {
    file_is("config/timberline.toml", &default_file());
    assert_eq!(from_text(&default_file()).unwrap(), BrokerConfig::default());
}

#[test]
fn explain_knows_every_key() {
    for key in keys() {
        let text = explain(&key.path()).unwrap();
        assert!(text.contains(&key.documentation));
        assert_eq!(explain(&key.environment()).unwrap(), text);
    }
    assert_eq!(explain("no.such"), None);
}
