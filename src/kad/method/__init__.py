"""The method: rules, composition, verification and the speculative loop. It needs torch alone."""
