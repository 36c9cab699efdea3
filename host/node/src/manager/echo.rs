//! Which states nodes have seen: a vault's commit is answered once those who are there have seen the state that it stands in, so that
//! a manager put back to before it is found out.

use std::time::{Duration, Instant};

use cloister_manager::{Audience, Echoes, Mark};
use tokio::sync::watch;

/// How long a commit waits for nodes: longer than a lease lasts, so that one that is gone is not waited for any more.
const PATIENCE: Duration = Duration::from_secs(40);
/// After this time a node that has not renewed its lease has lost it.
const LEFT: Duration = Duration::from_secs(31);
/// After this time it is looked anew who is there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What was announced, and who has seen what.
#[derive(Debug)]
pub(super) struct Announcements {
    newest: watch::Sender<Option<Mark>>,
    echoes: watch::Sender<Echoes>,
}

impl Default for Announcements {
    fn default() -> Self {
        Self {
            newest: watch::Sender::new(None),
            echoes: watch::Sender::new(Echoes::default()),
        }
    }
}

impl Announcements {
    /// The newest state that was announced; earlier ones may be passed over.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Mark>> {
        self.newest.subscribe()
    }

    /// What a node, attested as that one, says that it remembers. A state that was not announced yet counts for those before it, too.
    pub(super) fn heard(&self, node: &str, saw: &Mark) {
        let known = self
            .newest
            .borrow()
            .as_ref()
            .is_some_and(|newest| newest.store == saw.store);
        if known {
            self.echoes.send_modify(|echoes| echoes.heard(node, saw.version));
        }
    }

    /// Announces a state, and waits until those have seen it who have to; `audience` says who that is.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(super) async fn wait<E, F>(&self, mark: &Mark, audience: impl Fn() -> F) -> Result<Result<(), String>, E>
    where
        F: Future<Output = Result<Audience, E>>,
    {
        let since = Instant::now();
        self.newest.send_if_modified(|newest| {
            let newer = newest.is_none_or(|newest| newest.store != mark.store || newest.version < mark.version);
            if newer {
                *newest = Some(*mark);
            }
            newer
        });
        let mut echoes = self.echoes.subscribe();
        // Who was there stays for as long as its lease does by this machine's monotonic clock: the wall clock may be set.
        let mut here = Audience::default();
        loop {
            if here.is_empty() || since.elapsed() >= LEFT {
                here = audience().await?;
            }
            // Who commits holds a lease, so somebody is there; else a clock was set.
            let seen = echoes.wait_for(|echoes| !here.is_empty() && echoes.seen_by(&here, mark.version).is_ok());
            if tokio::time::timeout(LOOK_AGAIN, seen).await.is_ok() {
                return Ok(Ok(()));
            }
            if since.elapsed() >= PATIENCE {
                let unseen = echoes.borrow().seen_by(&here, mark.version);
                let missing = unseen.err().map_or_else(
                    || "no node holds a lease by the manager's clock".to_owned(),
                    |unseen| {
                        let silent = unseen.silent.join(", ");
                        format!(
                            "{} of {} nodes have seen it; {silent} have not",
                            unseen.seen, unseen.wanted
                        )
                    },
                );
                return Ok(Err(format!(
                    "the state that the commit stands in could still be put back without anybody's notice: {missing}"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics says where")]

    use std::convert::Infallible;
    use std::future::ready;
    use std::sync::Arc;

    use cloister_manager::{Audience, Quorum, StoreId};
    use cloister_policy::Policy;
    use cloister_tensor::Digest;

    use super::*;

    fn mark(store: u8, version: u64) -> Mark {
        Mark {
            store: StoreId::from_bytes([store; 16]),
            version,
            digest: Digest::of(b"state"),
            lines: version,
            line: Digest::of(b"line"),
        }
    }

    fn audience() -> Audience {
        let policy = include_bytes!("../../../../policies/simulation.toml");
        let quorum = Quorum::of(&Policy::parse(policy, "simulation.toml").unwrap());
        let nodes: Vec<_> = quorum.nodes().iter().map(String::as_str).take(2).collect();
        assert!(quorum.wanted() >= 2, "{nodes:?}");
        Audience::of(&quorum, nodes.into_iter())
    }

    #[tokio::test]
    async fn a_commit_is_answered_when_the_last_who_is_there_has_seen_it() {
        let announcements = Arc::new(Announcements::default());
        let policy = Policy::parse(
            include_bytes!("../../../../policies/simulation.toml"),
            "simulation.toml",
        )
        .unwrap();
        let nodes = Quorum::of(&policy).nodes().to_vec();
        let waiting = {
            let announcements = Arc::clone(&announcements);
            tokio::spawn(async move {
                let audience = || ready(Ok::<_, Infallible>(audience()));
                announcements.wait(&mark(1, 7), audience).await
            })
        };
        let mut follow = announcements.follow();
        let told = follow.wait_for(Option::is_some).await.unwrap().unwrap();
        assert_eq!(told.version, 7);
        announcements.heard(&nodes[0], &mark(1, 7));
        // An earlier state, and one of another manager, are no answer.
        announcements.heard(&nodes[1], &mark(1, 6));
        announcements.heard(&nodes[1], &mark(2, 9));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        announcements.heard(&nodes[1], &mark(1, 8));
        assert_eq!(waiting.await.unwrap(), Ok(Ok(())));
    }
}
