"""The scenarios, by what they are about; `router.lab.scenario` lists them."""
