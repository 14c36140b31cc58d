//! Threads share jobs, whatever they are, and live on when one of them panics.

use super::*;

#[test]
fn every_item_is_worked_on_once() {
    for threads in [1, 2, 5] {
        let pool = Pool::start(threads).unwrap();
        for count in [0, 1, 7, 1000] {
            let mut hits = vec![0u32; count];
            pool.each(hits.iter_mut(), |_, hit| *hit += 1);
            assert!(hits.iter().all(|&hit| hit == 1), "{threads} threads, {count} items");
            pool.each_by_part(hits.iter_mut(), |_, hit| *hit += 1);
            assert!(hits.iter().all(|&hit| hit == 2), "{threads} threads, {count} items");
            let odd_ends = |thread: usize| [1, 0, 5000][thread % 3];
            pool.each_of_parts(hits.iter_mut().collect(), odd_ends, |_, hit| *hit += 1);
            assert!(hits.iter().all(|&hit| hit == 3), "{threads} threads, {count} items");
            for grain in [0, 1, 3, 2000] {
                let hits: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.share(count, grain, |thread, items| {
                    assert!(thread < threads);
                    for item in items {
                        hits[item].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(hits.into_iter().all(|hit| hit.into_inner() == 1), "{count} {grain}");
            }
        }
    }
}

#[test]
fn threads_help_also_after_a_pause() {
    let pool = Pool::start(3).unwrap();
    for _ in 0..20 {
        // Nobody leaves the job before all three have come.
        let all = std::sync::Barrier::new(3);
        let seen = Mutex::new(vec![0; 3]);
        pool.share(3, 1, |thread, items| {
            lock(&seen)[thread] += items.len();
            all.wait();
        });
        assert_eq!(*lock(&seen), [1, 1, 1]);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn pinned_threads_keep_to_a_core_each() {
    use crate::cpu::cores::tests::kernel;
    let own = kernel();
    let threads = own.len().min(3);
    let pool = Pool::start_pinned(threads).unwrap();
    let caller = std::thread::spawn(move || {
        pool.keep();
        let (all, seen) = (std::sync::Barrier::new(threads), Mutex::new(Vec::new()));
        pool.share(threads, 1, |thread, _| {
            lock(&seen).push((thread, kernel()));
            all.wait();
        });
        seen.into_inner().unwrap()
    });
    let mut seen = caller.join().unwrap();
    seen.sort_unstable();
    let expected: Vec<_> = (0..threads).map(|thread| (thread, vec![own[thread]])).collect();
    assert_eq!(seen, expected);
    assert_eq!(kernel(), own, "other threads go where they went");
    assert!(Pool::start_pinned(own.len() + 1).is_err());
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::start(2).unwrap();
    for guilty in [0, 1] {
        let both = std::sync::Barrier::new(2);
        let job = |thread: usize, _: Range<usize>| {
            both.wait();
            assert_ne!(thread, guilty);
        };
        assert!(catch_unwind(AssertUnwindSafe(|| pool.share(2, 1, job))).is_err());
    }
    let count = AtomicUsize::new(0);
    pool.share(100, 1, |_, items| {
        count.fetch_add(items.len(), Ordering::Relaxed);
    });
    assert_eq!(count.into_inner(), 100);
}
