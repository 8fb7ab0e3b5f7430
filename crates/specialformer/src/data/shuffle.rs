//! A shuffled order that is new in each pass over the data.

use crate::data::words::{Purpose, Words};

/// Which of `count` items comes as draw 0, 1, 2, …: a permutation per pass,
/// fixed by (seed, stream, pass). It holds four bytes per item.
#[derive(Debug, Clone)]
pub(crate) struct Shuffle {
    seed: u64,
    stream: u64,
    order: Vec<u32>,
    /// The pass that `order` belongs to.
    pass: Option<u64>,
}

impl Shuffle {
    /// `count` must be positive.
    pub(crate) fn new(seed: u64, stream: u64, count: u32) -> Self {
        debug_assert!(count > 0);
        Self { seed, stream, order: (0..count).collect(), pass: None }
    }

    /// The item of draw `draw`; draws in order cost O(1) each on average.
    pub(crate) fn item(&mut self, draw: u64) -> u64 {
        let count = self.order.len() as u64;
        let (pass, index) = (draw / count, draw % count);
        if self.pass != Some(pass) {
            self.arrange(pass);
            self.pass = Some(pass);
        }
        u64::from(self.order[index as usize])
    }

    /// Fisher and Yates, from the identity, so that a pass does not depend on
    /// those before it.
    fn arrange(&mut self, pass: u64) {
        let mut words = Words::new(self.seed, Purpose::Order, self.stream, pass);
        for (i, item) in self.order.iter_mut().enumerate() {
            *item = i as u32;
        }
        for i in (1..self.order.len()).rev() {
            let j = words.below(i as u32 + 1) as usize;
            self.order.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_pass_shows_each_item_once(seed: u64, count in 1_u32..200, pass in 0_u64..5) {
            let mut shuffle = Shuffle::new(seed, 1, count);
            let start = pass * u64::from(count);
            let mut items: Vec<_> = (0..u64::from(count)).map(|i| shuffle.item(start + i)).collect();
            items.sort_unstable();
            prop_assert_eq!(items, (0..u64::from(count)).collect::<Vec<_>>());
        }

        #[test]
        fn a_draw_does_not_depend_on_those_before_it(seed: u64, count in 1_u32..50, draw in 0_u64..500) {
            let mut walked = Shuffle::new(seed, 3, count);
            let expected = (0..=draw).map(|d| walked.item(d)).last().unwrap();
            prop_assert_eq!(Shuffle::new(seed, 3, count).item(draw), expected);
        }
    }

    #[test]
    fn passes_differ() {
        let mut shuffle = Shuffle::new(1, 1, 100);
        let pass =
            |s: &mut Shuffle, p: u64| (0..100).map(|i| s.item(p * 100 + i)).collect::<Vec<_>>();
        let (first, second) = (pass(&mut shuffle, 0), pass(&mut shuffle, 1));
        assert_ne!(first, second);
        assert_eq!(pass(&mut shuffle, 0), first);
    }
}
