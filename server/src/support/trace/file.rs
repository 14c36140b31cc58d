//! Traces in a JSON file, in the form that Triton's tools read: one array of objects.
//!
//! A thread of its own writes, so that no request waits for a disk; what it cannot keep up with
//! is dropped and counted in the log. The file is a whole array after every trace.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use engine::Flood;
use serde_json::{Value, json};

use super::{Steps, Trace};

/// Traces that wait to be written; more are dropped.
const MAX_WAITING: usize = 4096;

/// How long a flush may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The writer of trace files.
#[derive(Debug)]
pub(super) struct TraceFile {
    lines: SyncSender<Job>,
    dropped: Mutex<Flood>,
}

enum Job {
    Write { objects: Vec<Value>, log_frequency: u32 },
    Flush(SyncSender<()>),
}

impl TraceFile {
    /// Makes the writer; the file is made with the first trace.
    pub(super) fn new(path: PathBuf) -> Self {
        let (lines, jobs) = mpsc::sync_channel(MAX_WAITING);
        let write = move || write(&path, &jobs);
        if let Err(error) = std::thread::Builder::new().name("traces".into()).spawn(write) {
            tracing::warn!(%error, "traces cannot be written");
        }
        Self { lines, dropped: Mutex::default() }
    }

    /// Writes a trace, some time soon.
    pub(super) fn write(&self, trace: &Trace, steps: Steps) {
        let job = Job::Write { objects: objects(trace, steps), log_frequency: trace.log_frequency };
        if let Err(TrySendError::Full(_)) = self.lines.try_send(job) {
            let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(untold) = dropped.admit() {
                tracing::warn!(trace = trace.id, untold, "too many traces wait; one is dropped");
            }
        }
    }

    /// Waits until what was given is written.
    pub(super) fn flush(&self) {
        let (done, is_done) = mpsc::sync_channel(1);
        if self.lines.send(Job::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Makes the objects of one trace: the request, its steps, its tensors.
fn objects(trace: &Trace, steps: Steps) -> Vec<Value> {
    let mut objects = vec![json!({
        "id": trace.id,
        "model_name": &*trace.model,
        "model_version": trace.version.parse::<u64>().unwrap_or(1),
        "request_id": trace.request_id,
    })];
    if trace.has_timestamps {
        let start = trace.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let input_end = start + steps.input;
        let end = start + steps.total;
        let compute_end = end.saturating_sub(steps.output);
        let timestamps = [
            ("REQUEST_START", start),
            // Inputs are decoded before a request queues: nothing is left to do for them then.
            ("QUEUE_START", input_end),
            ("COMPUTE_START", input_end + steps.queue),
            ("COMPUTE_INPUT_END", input_end + steps.queue),
            ("COMPUTE_OUTPUT_START", compute_end),
            ("COMPUTE_END", end),
            ("REQUEST_END", end),
        ];
        let stamp =
            |(name, at): (&str, Duration)| json!({"name": name, "ns": at.as_nanos() as u64});
        let stamps: Vec<Value> = timestamps.into_iter().map(stamp).collect();
        objects.push(json!({"id": trace.id, "timestamps": stamps}));
    }
    for tensor in &trace.tensors {
        objects.push(json!({
            "id": trace.id,
            "activity": tensor.activity,
            "tensor": {
                "name": tensor.name,
                "data": tensor.data,
                "shape": tensor.shape,
                "dtype": tensor.datatype,
            },
        }));
    }
    objects
}

/// Writes what comes until nobody can send any more.
fn write(path: &Path, jobs: &Receiver<Job>) {
    let mut open: Option<File> = None;
    let (mut index, mut count, mut failures) = (0u32, 0u32, Flood::default());
    for job in jobs {
        let (objects, log_frequency) = match job {
            Job::Write { objects, log_frequency } => (objects, log_frequency),
            Job::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let name = match log_frequency {
            0 => path.to_owned(),
            _ => PathBuf::from(format!("{}.{index}", path.display())),
        };
        let result = match &mut open {
            Some(file) => append(file, &objects, false),
            None => File::create(&name).and_then(|mut file| {
                append(&mut file, &objects, true)?;
                open = Some(file);
                Ok(())
            }),
        };
        if let Err(error) = result
            && let Some(untold) = failures.admit()
        {
            tracing::warn!(%error, untold, file = %name.display(), "a trace cannot be written");
        }
        count += 1;
        if log_frequency > 0 && count >= log_frequency {
            (open, count) = (None, 0);
            index += 1;
        }
    }
}

/// Puts objects at the end of the array, which stays an array.
fn append(file: &mut File, objects: &[Value], is_new: bool) -> std::io::Result<()> {
    let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    let begin = if is_new { "[" } else { "," };
    if !is_new {
        file.seek(SeekFrom::End(-1))?;
    }
    file.write_all(format!("{begin}{}]", texts.join(",\n")).as_bytes())
}
