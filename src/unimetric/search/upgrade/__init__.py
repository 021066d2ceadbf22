"""A database's change to another model, while it serves: ``unimetric upgrade``.

- `maps`: maps of the old vectors into the new model's space, fitted on images that both models embedded
- `decision`: the moment from which the new model answers better than the old one
- `thresholds`: the new model's thresholds, for a gallery of which a part is moved by a map
- `moving`: rows of moved vectors, and their agreement with the old rows
- `embedding`: rows embedded by the new model, from their images
- `both`: what concerns the old and the new vectors while both are kept
- `run`: the upgrade from its start to its end; `rollback` undoes it
- `state`: its state, for people
"""
