"""The playground: a page that asks this gateway and shows what comes back. Browsers get ``page`` as it is."""
