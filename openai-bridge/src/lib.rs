//! Turns text requests into token requests and token streams into answers; no IO.
