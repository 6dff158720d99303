"""How well a policy plays, and how well a student knows its teacher."""
