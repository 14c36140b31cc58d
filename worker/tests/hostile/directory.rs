//! A directory of sound files, of which one at a time is replaced by bytes that mean no good.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Names and contents; a name may have a folder in front.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// Set in the first byte: the rest are changes of the sound file, and not a file themselves.
pub(crate) const EDITS: u8 = 0x80;

/// Bytes of a change: what is done, the place as two bytes, and a byte to put there.
pub(crate) const EDIT_BYTES: usize = 4;

/// The directory.
#[derive(Debug)]
pub(crate) struct Hostile {
    path: PathBuf,
    files: Files,
}

impl Hostile {
    /// Writes the sound files.
    pub(crate) fn make(path: &Path, files: Files) -> Self {
        for (name, bytes) in &files {
            write(&path.join(name), bytes);
        }
        Self { path: path.to_owned(), files }
    }

    /// Has the directory read with one file changed, which the first byte names. Without any byte it
    /// is as it was.
    pub(crate) fn with<T>(&self, data: &[u8], read: impl FnOnce(&Path) -> T) -> T {
        let Some((choice, data)) = data.split_first() else { return read(&self.path) };
        let (name, sound) = &self.files[usize::from(choice & !EDITS) % self.files.len()];
        let file = self.path.join(name);
        match choice & EDITS == 0 {
            true => write(&file, data),
            false => write(&file, &edited(sound, data)),
        }
        let outcome = read(&self.path);
        write(&file, sound);
        outcome
    }
}

/// Changes some bytes, puts some in, and cuts the end off.
fn edited(sound: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for edit in edits.as_chunks::<EDIT_BYTES>().0 {
        let place = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % (bytes.len() + 1);
        match (edit[0] % 8, bytes.get_mut(place)) {
            (0, _) => bytes.truncate(place),
            (1 | 2, _) => bytes.insert(place, edit[3]),
            (_, Some(byte)) => *byte = edit[3],
            (_, None) => bytes.push(edit[3]),
        }
    }
    bytes
}

fn write(path: &Path, bytes: &[u8]) {
    let folder = path.parent().expect("a file lies in a folder");
    std::fs::create_dir_all(folder).expect("the folder for temporary files can be written");
    // A new file: one that is cut and written again is brought to the disk at once by some systems.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).expect("the folder for temporary files can be written");
}

/// Makes a safetensors file of zeros, given names and shapes, the contiguous dimension last.
pub(crate) fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += size_of::<f32>() * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    bytes
}
