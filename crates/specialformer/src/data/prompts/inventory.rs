//! What generated prompts are made of.

/// Things, in lower case.
pub(super) const NOUNS: [&str; 96] = [
    "apple", "river", "table", "garden", "window", "bottle", "candle", "mountain", "bridge",
    "pencil", "basket", "island", "forest", "kitchen", "rocket", "planet", "button", "pillow",
    "carpet", "ladder", "hammer", "guitar", "violin", "piano", "camera", "mirror", "jacket",
    "blanket", "orange", "banana", "cherry", "lemon", "pepper", "tomato", "potato", "carrot",
    "onion", "butter", "cheese", "coffee", "sugar", "honey", "bread", "soup", "plate", "spoon",
    "knife", "glass", "chair", "desk", "lamp", "clock", "phone", "paper", "book", "letter",
    "stamp", "ticket", "train", "wagon", "truck", "boat", "ship", "anchor", "harbor", "beach",
    "desert", "valley", "meadow", "field", "farm", "barn", "horse", "tiger", "rabbit", "monkey",
    "eagle", "parrot", "turtle", "salmon", "whale", "spider", "beetle", "flower", "tree", "leaf",
    "stone", "metal", "silver", "copper", "cotton", "leather", "ribbon", "thread", "needle",
    "engine",
];

/// First names.
pub(super) const NAMES: [&str; 48] = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Irene", "Jack", "Karen",
    "Leo", "Maria", "Noah", "Olivia", "Peter", "Quentin", "Rosa", "Simon", "Teresa", "Ursula",
    "Victor", "Wendy", "Xavier", "Yvonne", "Zoe", "Alice", "Brian", "Carol", "Daniel", "Ellen",
    "Frank", "Gina", "Harold", "Ida", "James", "Kate", "Louis", "Martha", "Nina", "Oscar", "Paula",
    "Robert", "Sarah", "Thomas", "Vera", "Walter", "Julia",
];

/// Family names.
pub(super) const SURNAMES: [&str; 48] = [
    "Adams",
    "Baker",
    "Carter",
    "Dixon",
    "Evans",
    "Fisher",
    "Gibson",
    "Harris",
    "Irwin",
    "Jenkins",
    "Keller",
    "Lawson",
    "Miller",
    "Newton",
    "Owens",
    "Porter",
    "Quinn",
    "Russell",
    "Stone",
    "Turner",
    "Underwood",
    "Vaughn",
    "Walker",
    "Young",
    "Archer",
    "Bennett",
    "Cooper",
    "Dawson",
    "Elliott",
    "Foster",
    "Grant",
    "Hughes",
    "Ingram",
    "Jordan",
    "Knight",
    "Lambert",
    "Morris",
    "Norton",
    "Oliver",
    "Parker",
    "Reed",
    "Shaw",
    "Tucker",
    "Vance",
    "Webb",
    "Yates",
    "Bishop",
    "Clarke",
];

/// Towns.
pub(super) const TOWNS: [&str; 32] = [
    "Rome", "Paris", "Berlin", "Madrid", "Vienna", "Lisbon", "Dublin", "Oslo", "Prague", "Warsaw",
    "Athens", "Helsinki", "Budapest", "Boston", "Denver", "Chicago", "Seattle", "Toronto",
    "Sydney", "Tokyo", "Cairo", "Lima", "Quito", "Havana", "Delhi", "Bern", "Milan", "Lyon",
    "Porto", "Turin", "Leeds", "York",
];

/// Words for the middle of a sentence.
pub(super) const VERBS: [&str; 24] = [
    "carries", "watches", "paints", "cleans", "follows", "finds", "buys", "sells", "draws",
    "moves", "opens", "closes", "holds", "lifts", "drops", "counts", "breaks", "fixes", "hides",
    "shows", "makes", "needs", "wants", "likes",
];

/// Words before a thing.
pub(super) const ADJECTIVES: [&str; 32] = [
    "small", "large", "old", "new", "red", "blue", "green", "yellow", "heavy", "light", "quiet",
    "loud", "bright", "dark", "warm", "cold", "dry", "wet", "clean", "dirty", "soft", "hard",
    "round", "flat", "broken", "empty", "full", "quick", "slow", "strange", "simple", "fancy",
];

/// Months in order.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// What reviews are about.
pub(super) const REVIEWED: [&str; 24] = [
    "movie",
    "book",
    "hotel",
    "restaurant",
    "phone",
    "song",
    "concert",
    "lecture",
    "museum",
    "game",
    "course",
    "flight",
    "meal",
    "play",
    "laptop",
    "jacket",
    "service",
    "tour",
    "novel",
    "show",
    "camera",
    "sofa",
    "train ride",
    "exhibition",
];

/// Praise.
pub(super) const PRAISE: [&str; 20] = [
    "wonderful",
    "excellent",
    "delightful",
    "fantastic",
    "superb",
    "brilliant",
    "charming",
    "amazing",
    "perfect",
    "great",
    "lovely",
    "impressive",
    "outstanding",
    "enjoyable",
    "beautiful",
    "terrific",
    "marvelous",
    "splendid",
    "pleasant",
    "first-rate",
];

/// Blame.
pub(super) const BLAME: [&str; 20] = [
    "terrible",
    "awful",
    "boring",
    "disappointing",
    "dreadful",
    "horrible",
    "poor",
    "dull",
    "annoying",
    "bad",
    "useless",
    "tedious",
    "unpleasant",
    "weak",
    "miserable",
    "overpriced",
    "shoddy",
    "frustrating",
    "lousy",
    "second-rate",
];

/// What those who praise say next.
pub(super) const GLAD: [&str; 10] = [
    "I would recommend it to everyone",
    "I will come back for sure",
    "it made my whole week",
    "every minute was worth it",
    "I enjoyed it from start to end",
    "my friends loved it too",
    "it was better than I had hoped",
    "I could not stop smiling",
    "it was worth every cent",
    "I would gladly do it again",
];

/// What those who blame say next.
pub(super) const SORRY: [&str; 10] = [
    "I want my money back",
    "I would never do it again",
    "it was a waste of time",
    "I left before the end",
    "nothing worked as promised",
    "my friends hated it too",
    "it was worse than I had feared",
    "I cannot recommend it to anyone",
    "it ruined my evening",
    "I regret every minute of it",
];

/// Ends of domain names.
pub(super) const DOMAIN_ENDS: [&str; 6] = ["com", "org", "net", "edu", "io", "info"];
