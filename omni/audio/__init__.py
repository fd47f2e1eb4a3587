"""bytes ⇄ samples → mel. The ground floor: signal, no model."""
