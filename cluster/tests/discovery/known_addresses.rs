//! Workers that only listen, and a frontend that knows their addresses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cluster::discovery::{
    Describe, Discovery, Event, Lease, Mem, Query, Static, Watch, static_list,
};
use cluster::instance::Instance;
use engine::{Error, ErrorKind, Result, Tasks};
use tokio::time::sleep;

/// Registering makes an address answer; watching asks the addresses.
#[derive(Clone, Debug)]
pub(crate) struct KnownAddresses {
    workers: Mem,
    answers: Arc<Answers>,
    addresses: Static,
}

#[derive(Debug, Default)]
struct Answers(Mutex<BTreeMap<String, Instance>>);

#[async_trait]
impl Describe for Answers {
    async fn describe(&self, address: &str) -> Result<Instance> {
        let answer = self.0.lock().unwrap().get(address).cloned();
        answer.ok_or_else(|| Error::new(ErrorKind::Unavailable, "nobody listens"))
    }
}

impl KnownAddresses {
    pub(crate) fn new(count: u16) -> Self {
        let tasks = Tasks::new();
        let (workers, answers) = (Mem::new(&tasks), Arc::new(Answers::default()));
        let (mut watch, seen) = (workers.watch(Query::All), answers.clone());
        tasks.spawn("answers", async move {
            while let Some(event) = watch.next().await {
                let mut answers = seen.0.lock().unwrap();
                match event {
                    Event::Put(instance) => {
                        answers.insert(instance.address.clone(), (*instance).clone());
                    }
                    Event::Remove(id) => answers.retain(|_, instance| instance.id != id),
                    _ => {}
                }
            }
        });
        let config = static_list::Config {
            addresses: (0..count).map(|port| format!("grpc://worker:{port}")).collect(),
            interval: Duration::from_millis(20),
            ..static_list::Config::default()
        };
        let addresses = Static::new(config, answers.clone(), &tasks).unwrap();
        Self { workers, answers, addresses }
    }
}

#[async_trait]
impl Discovery for KnownAddresses {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        self.addresses.register(instance.clone()).await?.revoke().await?;
        let address = instance.address.clone();
        let lease = self.workers.register(instance).await?;
        // A worker that has registered answers.
        while self.answers.describe(&address).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(lease)
    }

    fn watch(&self, query: Query) -> Watch {
        self.addresses.watch(query)
    }
}
