//! Enums whose variants are the values of a Prometheus label.

/// Declares an enum with `ALL`, every variant in the order of the exposition, and `label()`,
/// the value of the label.
macro_rules! label_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $label:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every variant, in the order of the exposition.
            pub const ALL: [$name; [$($label),*].len()] = [$($name::$variant),*];

            /// The value of the label.
            pub fn label(self) -> &'static str {
                match self {
                    $($name::$variant => $label,)*
                }
            }
        }
    };
}

pub(crate) use label_enum;
