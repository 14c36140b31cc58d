//! What tiers promise: what was put comes back whole or not at all, within the bound.

use std::fs;

use super::*;

fn block(number: u64, bytes: usize) -> Kept {
    Kept {
        name: SequenceHash(number),
        salt: Salt(number % 3),
        tokens: vec![number as TokenId; 4],
        bytes: (0..bytes).map(|byte| (byte as u64 * 31 + number) as u8).collect(),
    }
}

/// Asks until the answer is there.
fn take(tier: &mut dyn Tier, name: SequenceHash) -> Option<Kept> {
    loop {
        match tier.take(name) {
            Found::Here(block) => return Some(block),
            Found::Absent => return None,
            Found::Coming => tier.wait(Duration::from_secs(60)),
        }
    }
}

#[test]
fn a_tier_gives_back_what_it_was_given_and_keeps_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let size = block(1, 1000).size_bytes();
    let disk = DiskTier::start(folder.path(), 10 * size).unwrap();
    let tiers: [Box<dyn Tier>; 2] = [Box::new(HostTier::new(10 * size)), Box::new(disk)];
    for mut tier in tiers {
        let mut random = fastrand::Rng::with_seed(3);
        let mut found = 0;
        for _ in 0..2000 {
            let number = random.u64(..30);
            if random.bool() {
                let given_up = tier.put(block(number, 1000));
                assert!(given_up.iter().all(|other| *other == block(other.name.0, 1000)));
            } else if let Some(taken) = take(&mut *tier, SequenceHash(number)) {
                assert_eq!(taken, block(number, 1000));
                found += 1;
            }
            assert!(tier.used_bytes() <= 10 * size);
        }
        assert!(found > 100, "{found}");
        assert_eq!(take(&mut *tier, SequenceHash(99)), None);
    }
}

#[test]
fn the_least_recently_used_go_first_and_to_the_next_tier() {
    let size = block(1, 100).size_bytes();
    let host = || Box::new(HostTier::new(2 * size));
    let mut tiers = Tiers::new(vec![host(), host()]);
    (1..=5).for_each(|number| tiers.put(block(number, 100)));
    let mut place = |number| match tiers.take(SequenceHash(number)) {
        (_, Found::Here(found)) => found == block(number, 100),
        _ => false,
    };
    assert_eq!([1, 2, 3, 4, 5].map(&mut place), [false, true, true, true, true]);
    assert!(!place(5), "what was taken is gone");
    // What is larger than a tier passes it by.
    assert_eq!(HostTier::new(size).put(block(1, 5000)).len(), 1);
}

#[test]
fn a_damaged_or_missing_file_is_no_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u64| folder.path().join("0").join(format!("{number:016x}.kvblock"));
    fs::create_dir(folder.path().join("0")).unwrap();
    fs::write(path(77), "of an earlier run").unwrap();
    fs::write(folder.path().join("0/other.txt"), "not ours").unwrap();
    let mut tier = DiskTier::start(folder.path(), 1 << 20).unwrap();
    assert!(!path(77).exists() && folder.path().join("0/other.txt").exists());
    (0..5).for_each(|number| drop(tier.put(block(number, 300))));
    // What is read was written before.
    assert_eq!(take(&mut tier, SequenceHash(4)), Some(block(4, 300)));
    let mut bytes = fs::read(path(0)).unwrap();
    for place in [0, 8, 16, 40, bytes.len() - 1] {
        bytes[place] ^= 1;
        // Another tier in the same folder has a place of its own.
        let mut other = DiskTier::start(folder.path(), 1 << 20).unwrap();
        other.put(block(0, 300));
        assert_eq!(take(&mut other, SequenceHash(0)), Some(block(0, 300)));
        // Whichever it is: the one of the round before may still be about to leave its own.
        for number in 1..10 {
            let file = folder.path().join(format!("{number}/{:016x}.kvblock", 0));
            if file.exists() {
                fs::write(file, &bytes).unwrap();
            }
        }
        assert_eq!(take(&mut other, SequenceHash(0)), None, "byte {place}");
        assert_eq!(other.used_bytes(), 0);
        bytes[place] ^= 1;
    }
    fs::remove_file(path(1)).unwrap();
    assert_eq!(take(&mut tier, SequenceHash(1)), None);
    fs::write(path(2), &bytes[..20]).unwrap();
    assert_eq!(take(&mut tier, SequenceHash(2)), None);
    assert_eq!(take(&mut tier, SequenceHash(3)), Some(block(3, 300)));
    assert!(DiskTier::start(&path(3), 1).is_err(), "a file is no folder");
}
