use std::time::Duration;

use tokio_stream::StreamExt;

use super::object::SendError;
use super::*;

/// An object whole.
async fn read(store: &ContentStore, digest: &Digest) -> Result<Vec<u8>, ExchangeError> {
    let mut object = store.object(digest).await?.unwrap();
    let mut whole = Vec::new();
    while let Some(chunk) = object.chunk().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

#[tokio::test]
async fn objects_come_back_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"module");
    let wanted = Wanted {
        kind: ContentKind::Module,
        name: "train".into(),
        digest,
    };
    let store = ContentStore::open(folder.path().join("c"), vec![wanted.clone(), wanted.clone()], 100)
        .await
        .unwrap();
    assert_eq!(store.missing().await, vec![wanted]);
    assert!(store.names(ContentKind::Module, "train", &digest));
    assert!(!store.names(ContentKind::Graph, "train", &digest));
    assert!(store.put(&digest, b"other", "alpha", &[1; 64]).await.is_err());
    assert!(store.put(&digest, b"module", "alpha", &[1; 64]).await.unwrap());
    assert!(!store.put(&digest, b"module", "alpha", &[1; 64]).await.unwrap());
    assert!(store.missing().await.is_empty());
    assert_eq!(
        store.stored(&digest).await,
        Some(Stored {
            length: 6,
            participant: "alpha".into()
        })
    );
    assert_eq!(read(&store, &digest).await.unwrap(), b"module");
    for damaged in [&b"changed"[..], b"modul", b"module, and more", &[7; 200]] {
        std::fs::write(store.path(&digest), damaged).unwrap();
        assert!(matches!(read(&store, &digest).await, Err(ExchangeError::Digest { .. })));
    }
    assert!(store.object(&Digest::of(b"absent")).await.unwrap().is_none());
    assert!(
        store.put(&digest, b"module", "beta", &[2; 64]).await.unwrap(),
        "what is damaged can be brought again"
    );
    assert_eq!(read(&store, &digest).await.unwrap(), b"module");
}

#[tokio::test]
async fn what_was_damaged_between_two_starts_is_missing_until_it_is_submitted_again() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str, content: &[u8]| Wanted {
        kind: ContentKind::Module,
        name: name.into(),
        digest: Digest::of(content),
    };
    let (train, fold) = (named("train", b"module"), named("fold", b"another"));
    let open = || ContentStore::open(folder.path().to_owned(), vec![train.clone(), fold.clone()], 100);
    let store = open().await.unwrap();
    store.put(&train.digest, b"module", "alpha", &[1; 64]).await.unwrap();
    store.put(&fold.digest, b"another", "alpha", &[1; 64]).await.unwrap();

    for damaged in [&b"modulf"[..], b"modul", b"", &[7; 200]] {
        std::fs::write(store.path(&train.digest), damaged).unwrap();
        let again = open().await.unwrap();
        assert_eq!(again.missing().await, vec![train.clone()], "{damaged:?}");
        assert_eq!(again.stored(&train.digest).await, None);
        assert!(
            again.object(&train.digest).await.unwrap().is_none(),
            "nobody is sent it"
        );
        assert!(again.put(&train.digest, b"module", "beta", &[2; 64]).await.unwrap());
        assert!(again.missing().await.is_empty());
        assert_eq!(read(&again, &train.digest).await.unwrap(), b"module");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_that_submit_one_object_at_a_time_leave_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let object = vec![7; 3 << 20];
    let digest = Digest::of(&object);
    let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 8 << 20)
        .await
        .unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for participant in ["alpha", "beta", "gamma", "delta"] {
        let (store, object) = (store.clone(), object.clone());
        puts.spawn(async move { store.put(&digest, &object, participant, &[1; 64]).await });
    }
    while let Some(put) = puts.join_next().await {
        put.unwrap().unwrap();
    }
    assert_eq!(read(&store, &digest).await.unwrap(), object);
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 2, "the object and its note, and nothing half-written");
}

#[tokio::test]
async fn a_participant_that_ends_no_transfer_stops_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 100)
        .await
        .unwrap();
    let mut held = Vec::new();
    for _ in 0..TRANSFERS {
        held.push(store.clone().turn("alpha").await);
    }
    let mut fifth = Box::pin(store.turn("alpha"));
    assert!(ready_now(&mut fifth).is_none(), "a fifth one waits");
    drop(store.turn("beta").await);
    held.pop();
    assert!(ready_now(&mut fifth).is_some());
}

/// What the future gives if it is ready.
fn ready_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_write_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"module");
    let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 100)
        .await
        .unwrap();
    // A folder stands where the object should come to be.
    std::fs::create_dir(store.path(&digest)).unwrap();
    assert!(store.put(&digest, b"module", "alpha", &[1; 64]).await.is_err());
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("part-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_submission_binds_every_field() {
    let (policy, object) = (Digest::of(b"policy"), Digest::of(b"object"));
    let base = Submission {
        federation: "f",
        policy_digest: &policy,
        kind: ContentKind::Module,
        name: "n",
        participant: "p",
    };
    let bytes = submission_bytes(&base, &object);
    let others = [
        submission_bytes(
            &Submission {
                federation: "g",
                ..base
            },
            &object,
        ),
        submission_bytes(
            &Submission {
                policy_digest: &object,
                ..base
            },
            &object,
        ),
        submission_bytes(
            &Submission {
                kind: ContentKind::Graph,
                ..base
            },
            &object,
        ),
        submission_bytes(&Submission { name: "m", ..base }, &object),
        submission_bytes(
            &Submission {
                participant: "q",
                ..base
            },
            &object,
        ),
        submission_bytes(&base, &policy),
    ];
    assert!(others.iter().all(|other| *other != bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_nobody_takes_gives_its_turn_back_and_holds_a_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let object = vec![7; 5 << 20];
    let digest = Digest::of(&object);
    let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 8 << 20)
        .await
        .unwrap();
    store.put(&digest, &object, "alpha", &[1; 64]).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..TRANSFERS {
        let object = store.object(&digest).await.unwrap().unwrap();
        slow.push(object.send(store.turn("alpha").await, Duration::from_millis(50)));
    }
    // They come when the others' time is over, though all of these are still there.
    let mut turns = Vec::new();
    for _ in 0..TRANSFERS {
        turns.push(store.turn("alpha").await);
    }
    for mut chunks in slow {
        assert_eq!(chunks.next().await.unwrap().unwrap().len(), 1 << 20);
        assert!(matches!(chunks.next().await, Some(Err(SendError::NotTaken { .. }))));
        assert!(chunks.next().await.is_none());
    }
    let object = store.object(&digest).await.unwrap().unwrap();
    let mut quick = object.send(turns.remove(0), Duration::from_secs(60));
    let mut length = 0;
    while let Some(chunk) = quick.next().await {
        length += chunk.unwrap().len();
    }
    assert_eq!(length, 5 << 20);
}
