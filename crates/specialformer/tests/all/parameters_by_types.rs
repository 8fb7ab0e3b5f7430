//! The table of parameters against types, by what each mechanism should add.

#[path = "../../examples/parameters_by_types.rs"]
mod example;

use example::{TOKENS, TYPES, WIDTH, table};

#[test]
fn mechanisms_grow_as_they_should() {
    let rows = table().unwrap();
    let of = |name: &str| &rows.iter().find(|(row, _)| row.starts_with(name)).unwrap().1;
    let plain = of("one plain");
    for (i, &types) in TYPES.iter().enumerate() {
        // Neither a plain table nor tables by type know how many types there are.
        assert_eq!(plain[i], plain[0]);
        assert_eq!(of("a table for each")[i], plain[0]);
        assert_eq!(of("type vectors")[i] - plain[0], types * WIDTH);
        assert_eq!(of("scale and shift")[i] - plain[0], types * 2 * WIDTH * 4);
        assert_eq!(of("4 learned tokens")[i] - plain[0], types * 4 * WIDTH);
        // Tables' factors, eight features of each task and of none, and the map to
        // the rank.
        let factors = (TOKENS + WIDTH) * 4 + (types + 1) * 8 + (8 + 1) * 4;
        assert_eq!(of("condition of rank")[i] - plain[0], factors);
        // Keys, the gate, and projections beside tables as large as the plain one.
        let mixture = of("mixture")[i] - plain[0];
        assert!(mixture < TOKENS * 8 + 16 * types + 2 * WIDTH * WIDTH, "{mixture}");
        // The blocks, times K, with the tokens and answers of each type alone.
        assert!(of("a model of its own")[i] >= types * (plain[0] - 2 * TOKENS * (WIDTH + 1)));
    }
}
