"""Reading OpenOrganelle: discovery of its layouts, registration of its grids, its classes and its data sets."""
