//! How processes find, call and hear each other.
