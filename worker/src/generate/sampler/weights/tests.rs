//! Cuts leave the first places of a full sort.

use super::*;

#[test]
fn the_heaviest_are_kept_and_of_equals_the_first() {
    const COUNT: usize = PART + 300;
    let mut random = fastrand::Rng::with_seed(3);
    let mut row =
        |weight: fn(f32) -> f32| -> Vec<f32> { (0..COUNT).map(|_| weight(random.f32())).collect() };
    let rows = [
        row(|random| random),
        row(|random| (random * 8.0).floor() / 8.0),
        row(|random| (random - 0.9).max(0.0)),
        row(|_| 1.0),
        row(|_| 0.0),
    ];
    for (isa, row) in
        Isa::available().into_iter().flat_map(|isa| rows.each_ref().map(|row| (isa, row)))
    {
        let mut sorted: Vec<usize> = (0..COUNT).collect();
        sorted.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for count in [1, 2, 50, 1000, COUNT - 1, COUNT, COUNT + 1] {
            let mut weights = Weights::new(isa);
            weights.copy(row.iter().copied());
            weights.keep(count);
            let mut expected = row.clone();
            sorted.iter().skip(count).for_each(|&place| expected[place] = 0.0);
            assert!(weights.each() == expected, "{isa:?} {count}");
            let exact: f64 = expected.iter().copied().map(f64::from).sum();
            assert!((weights.total() - exact).abs() <= 1e-6 * exact, "{isa:?} {count}");
        }
    }
}

#[test]
fn the_heaviest_place_is_drawn_however_small_the_share() {
    let mut weights = Weights::new(Isa::best());
    for random in [0.0, 0.3, 0.999_999] {
        weights.copy([0.0, 0.25, 1.0, 1.0, 0.5].into_iter());
        assert_eq!(weights.draw(0.0, random), Some(2));
        weights.copy([0.0; 5].into_iter());
        assert_eq!((weights.draw(0.0, random), weights.draw(1.0, random)), (None, None));
    }
}
