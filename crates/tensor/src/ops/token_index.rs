//! The types that index tables and classes.

/// An index into a table or a set of classes: token ids, targets.
pub trait TokenIndex: Copy + Eq + Send + Sync + 'static {
    /// The value that marks a position to leave out, where there is such a
    /// thing: the type's largest.
    const IGNORE: Self;
    /// The index as a position.
    fn index(self) -> usize;
}

impl TokenIndex for u32 {
    const IGNORE: Self = Self::MAX;

    fn index(self) -> usize {
        self as usize
    }
}

impl TokenIndex for usize {
    const IGNORE: Self = Self::MAX;

    fn index(self) -> usize {
        self
    }
}
