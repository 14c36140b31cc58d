//! A model's directory as Hugging Face publishes it: weights in one safetensors file or in
//! several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Json, SafeTensors, StoredTensor, Weights};
use crate::Error;

/// The file of a model that is not split.
const SINGLE: &str = "model.safetensors";

/// The file that says which tensor is in which file.
const INDEX: &str = "model.safetensors.index.json";

/// The most files that a model is split into; each stays open.
const MAX_FILES: usize = 512;

/// The weights of a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: Vec<SafeTensors>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
}

impl Directory {
    /// Opens the files of a directory and reads their headers.
    ///
    /// Errors: there are no weights, a file is broken, or the index and the files contradict each
    /// other; the text names the file and the tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let index = path.join(INDEX);
        if index.exists() {
            return Self::sharded(path, &Json::read(&index)?);
        }
        let single = path.join(SINGLE);
        if !single.exists() {
            let path = path.display();
            let text = format!("`{path}`: has neither `{SINGLE}` nor `{INDEX}`");
            return Err(Error::Model(text));
        }
        let files = vec![SafeTensors::open(&single)?];
        let places = files[0].names().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { path: path.to_owned(), files, places })
    }

    fn sharded(path: &Path, index: &Json) -> Result<Self, Error> {
        let map = index.object("weight_map")?;
        let map = map.ok_or_else(|| index.refusal("weight_map", "is missing"))?;
        let mut named = BTreeMap::new();
        for (tensor, file) in map.fields() {
            named.insert(tensor, bare_name(&map, tensor, file)?);
        }
        let names: BTreeSet<&str> = named.values().copied().collect();
        if names.len() > MAX_FILES {
            let why = format!("expected at most {MAX_FILES} files, got {}", names.len());
            return Err(index.refusal("weight_map", &why));
        }
        let files = names.iter().map(|name| SafeTensors::open(&path.join(name)));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let numbers: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let mut places = BTreeMap::new();
        for (tensor, file) in named {
            let number = numbers[file];
            if !files[number].has_tensor(tensor) {
                return Err(map.refusal(tensor, &format!("is not in `{file}`")));
            }
            places.insert(tensor.to_owned(), number);
        }
        // What a file holds beyond the index would be left out without a word.
        for (number, (name, file)) in names.iter().zip(&files).enumerate() {
            let mut extra = file.names().filter_map(|tensor| match places.get(tensor) {
                Some(place) if *place == number => None,
                Some(_) => Some((tensor, format!("is in `{name}` too, which is not its file"))),
                None => Some((tensor, format!("is missing, but `{name}` has it"))),
            });
            if let Some((tensor, why)) = extra.next() {
                return Err(map.refusal(tensor, &why));
            }
        }
        Ok(Self { path: path.to_owned(), files, places })
    }

    /// Returns the shape of a tensor, the contiguous dimension last.
    ///
    /// Errors: it is missing, or of a type that is not known.
    pub fn shape(&self, name: &str) -> Result<&[u64], Error> {
        self.file(name)?.shape(name)
    }

    /// Returns the file of a tensor.
    fn file(&self, name: &str) -> Result<&SafeTensors, Error> {
        let missing = || {
            let path = self.path.display();
            Error::Model(format!("`{path}`: tensor `{name}`: is missing"))
        };
        self.places.get(name).map(|&file| &self.files[file]).ok_or_else(missing)
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns a file's name that leads nowhere else.
fn bare_name<'a>(map: &Json, tensor: &str, file: &'a Value) -> Result<&'a str, Error> {
    let name = file.as_str().unwrap_or_default();
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name == ".." || name == "." {
        return Err(map.refusal(tensor, "expected the name of a file in the same directory"));
    }
    Ok(name)
}

impl Weights for Directory {
    fn tensor(&self, name: &str) -> Result<StoredTensor, Error> {
        self.file(name)?.tensor(name)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.places.keys().map(String::as_str))
    }
}
