//! A watch of the API server: what it sends, and when it ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::selects;
use super::store::{Shared, Weather};

/// The time between two bookmarks of a watch that has nothing else to send.
const BOOKMARKS: Duration = Duration::from_millis(300);

/// A watch.
pub(super) struct Follow {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    kind: String,
    selector: String,
    /// Up to which version everything has been sent.
    at: u64,
    /// When a bookmark is due.
    bookmark: Instant,
    end: Instant,
}

pub(super) type Line = Result<Bytes, io::Error>;

/// What a watch finds when it looks at the store.
#[derive(Debug, PartialEq)]
enum Look {
    Lines(Bytes),
    Nothing,
    /// The store tells watches nothing until it changes.
    Silence,
    Broken,
    Forgotten,
}

impl Follow {
    pub(super) fn new(shared: Arc<Shared>, kind: String, selector: String, at: u64) -> Self {
        let (changes, now) = (shared.changes.subscribe(), Instant::now());
        let end = now + shared.store().longest_watch;
        Self { shared, changes, kind, selector, at, bookmark: now + BOOKMARKS, end }
    }

    pub(super) async fn next(mut self) -> Option<(Line, Option<Self>)> {
        loop {
            self.changes.borrow_and_update();
            match self.look() {
                Look::Lines(lines) => return Some((Ok(lines), Some(self))),
                Look::Nothing => {}
                Look::Silence => {
                    self.changes.changed().await.ok()?;
                    continue;
                }
                Look::Broken => {
                    return Some((Err(io::Error::other("the weather is bad")), None));
                }
                Look::Forgotten => {
                    let status = json!({"kind": "Status", "code": 410, "message": "too old"});
                    return Some((Ok(line("ERROR", &status)), None));
                }
            }
            tokio::select! {
                _ = self.changes.changed() => {}
                () = sleep_until(self.end) => return None,
                () = sleep_until(self.bookmark) => {}
            }
        }
    }

    /// Returns what happened since the last look, or a bookmark that one is due for if nothing did.
    /// Both are of one moment, so that no bookmark is ahead of what was sent.
    fn look(&mut self) -> Look {
        let store = self.shared.store();
        match store.weather {
            Weather::Down => return Look::Broken,
            Weather::Frozen | Weather::Deaf => return Look::Silence,
            Weather::Fine if self.at < store.oldest => return Look::Forgotten,
            Weather::Fine => {}
        }
        let new = store.history.iter().filter(|one| one.version > self.at);
        let ours = new.filter(|one| one.kind == self.kind && selects(&self.selector, &one.object));
        let mut lines: Vec<Bytes> = ours.map(|one| line(one.what, &one.object)).collect();
        self.at = store.version.max(self.at);
        let now = Instant::now();
        if lines.is_empty() && self.bookmark <= now {
            let version = json!({"resourceVersion": self.at.to_string()});
            lines.push(line("BOOKMARK", &json!({"metadata": version})));
        }
        if lines.is_empty() {
            return Look::Nothing;
        }
        self.bookmark = now + BOOKMARKS;
        Look::Lines(lines.concat().into())
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": what, "object": object})).into()
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_is_never_ahead_of_an_event() {
    let shared = Arc::new(Shared::new());
    let selector = "stator/record=process".to_owned();
    let mut follow = Follow::new(shared.clone(), "leases".to_owned(), selector, 100);
    // `select!` takes what is ready in any order.
    for round in 0..100 {
        let metadata = json!({"name": format!("{round}"), "labels": {"stator/record": "process"}});
        // The change and the time for a bookmark come while the watch waits for either.
        let both_come = async {
            shared.change(|store| store.write("leases", json!({"metadata": metadata})));
            tokio::time::advance(BOOKMARKS).await;
        };
        let (next, ()) = tokio::join!(follow.next(), both_come);
        let (line, rest) = next.unwrap();
        let event: Value = serde_json::from_slice(&line.unwrap()).unwrap();
        assert_eq!(event["type"], "ADDED", "round {round}");
        follow = rest.unwrap();
        // The watch would end at some time.
        follow.end = Instant::now() + 2 * BOOKMARKS;
    }
}
