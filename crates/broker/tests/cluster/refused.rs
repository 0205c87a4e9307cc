//! Configurations that can't be, and strangers: each ends in an error that says what is wrong.

use timberline_broker::Error;
use timberline_proto::error::Reason;
use timberline_proto::internal as pb;

use crate::support::*;

/// What a start was refused with.
fn refusal(result: Result<(), Error>) -> String {
    match result {
        Err(Error::Start(why)) => why,
        Err(other) => panic!("refused otherwise: {other}"),
        Ok(()) => panic!("it was let in"),
    }
}

/// What came of whoever was done first: when that one is gone, the other one has nobody to compare with.
async fn either(one: &mut Member, other: &mut Member) -> Result<(), Error> {
    tokio::select! {
        result = one.start() => result,
        result = other.start() => result,
    }
}

#[tokio::test]
async fn seeds_that_disagree_are_told_so() {
    let seeds = [free_peer(), free_peer()];
    let mut one = Member::new(1, "a", &seeds[0], &seeds);
    let mut two = Member::new(
        2,
        "b",
        &seeds[1],
        &[
            seeds[0].clone(),
            seeds[1].clone(),
            seeds[0].replace("127.0.0.1", "localhost"),
        ],
    );
    // The second asks its own seeds: the first one answers under two names.
    let why = refusal(either(&mut one, &mut two).await);
    assert!(why.contains("disagree") && why.contains("--seeds"), "{why}");
}

#[tokio::test]
async fn two_seeds_with_one_id_are_told_so() {
    let seeds = [free_peer(), free_peer()];
    let mut one = Member::new(1, "a", &seeds[0], &seeds);
    let mut twin = Member::new(1, "b", &seeds[1], &seeds);
    twin.disk = timberline_storage::disk::FaultDisk::new(99);
    let why = refusal(either(&mut one, &mut twin).await);
    assert!(why.contains("broker id 1"), "{why}");
}

#[tokio::test]
async fn an_id_that_lives_is_not_given_twice() {
    let cluster = Cluster::start(3).await;
    let mut twin = Member::new(2, "x", &free_peer(), &cluster.seeds);
    twin.disk = timberline_storage::disk::FaultDisk::new(99);
    let why = refusal(twin.start().await);
    assert!(
        why.contains("BROKER_ID_IN_USE") && why.contains("broker 2"),
        "{why}"
    );
    // The one that lives goes on.
    cluster.all_live().await;
    cluster.topic("t", 1, 3).await;
}

#[tokio::test]
async fn a_broker_of_another_cluster_is_refused() {
    let cluster = Cluster::start(3).await;
    let here = cluster.at(1).cluster_id();
    let mut other = Cluster::start(1).await;
    let id = other.at(1).cluster_id();
    other.at_mut(1).stop().await;
    // Its directory is another cluster's; its configuration now points here.
    let stranger = other.at_mut(1);
    stranger.config.cluster.seeds.0.clone_from(&cluster.seeds);
    let why = refusal(stranger.start().await);
    assert!(
        why.contains("WRONG_CLUSTER") && why.contains(&id) && why.contains(&here),
        "{why}"
    );
    let refused = hello(&cluster.seeds[0], &id, 1).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::WrongCluster));
    assert!(refused.message.contains(&id), "{refused}");
    let seen = cluster.at(1).sees().await.cluster.unwrap();
    assert_eq!(seen.brokers.len(), 3);
    cluster.topic("t", 1, 3).await;
}

#[tokio::test]
async fn strangers_and_impostors_are_not_listened_to() {
    let cluster = Cluster::start(3).await;
    let id = cluster.at(1).cluster_id();
    let seed = &cluster.seeds[0];
    for (cluster_id, broker, why) in [
        ("another", 2, Reason::WrongCluster),
        ("", 2, Reason::WrongCluster),
        (&id, 2, Reason::DuplicateBroker),
        (&id, 9, Reason::UnknownBroker),
    ] {
        let refused = hello(seed, cluster_id, broker).await.unwrap_err();
        assert_eq!(
            refused.reason,
            Some(why),
            "{cluster_id} {broker}: {refused}"
        );
    }
    let unspoken = exchange(seed, Vec::new()).await.unwrap_err();
    assert_eq!(unspoken.reason, Some(Reason::HandshakeRequired));
    let batch = pb::peer_message::Message::Batch(vec![0xff; 100].into());
    let unspoken = exchange(seed, vec![batch]).await.unwrap_err();
    assert_eq!(unspoken.reason, Some(Reason::HandshakeRequired));
    cluster.all_live().await;
    cluster.topic("t", 1, 3).await;
}

#[tokio::test]
async fn more_replicas_than_brokers_are_refused() {
    let cluster = Cluster::start(3).await;
    for member in cluster.up() {
        let refused = member.admin().create_topic(create("t", 1, 4)).await;
        let refused = refused.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REPLICATION_FACTOR");
        assert!(refused.message().contains('3'), "{}", refused.message());
    }
    assert!(cluster.at(1).sees().await.topics.is_empty());
}
