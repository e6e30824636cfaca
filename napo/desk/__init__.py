"""The desk world: small scenes whose truth is known, questions about them, and base models that were taught a bias."""
