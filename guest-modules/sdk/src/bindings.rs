//! The worlds of `wit/`, as wit-bindgen renders them.
#![allow(missing_docs, reason = "generated; documented in wit/")]

/// The world `trainer`.
pub mod trainer {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "trainer",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_trainer_world",
        default_bindings_module: "cloister_guest::bindings::trainer",
    });
}

/// The world `transform`.
pub mod transform {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "transform",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_transform_world",
        default_bindings_module: "cloister_guest::bindings::transform",
        with: {
            "cloister:federation/types@0.1.0": crate::bindings::trainer::cloister::federation::types,
            "cloister:federation/settings@0.1.0": crate::bindings::trainer::cloister::federation::settings,
            "cloister:federation/log@0.1.0": crate::bindings::trainer::cloister::federation::log,
        },
    });
}

/// The world `aggregator`.
pub mod aggregator {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "aggregator",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_aggregator_world",
        default_bindings_module: "cloister_guest::bindings::aggregator",
        with: {
            "cloister:federation/types@0.1.0": crate::bindings::trainer::cloister::federation::types,
            "cloister:federation/settings@0.1.0": crate::bindings::trainer::cloister::federation::settings,
            "cloister:federation/log@0.1.0": crate::bindings::trainer::cloister::federation::log,
            "cloister:federation/metrics@0.1.0": crate::bindings::trainer::cloister::federation::metrics,
        },
    });
}
