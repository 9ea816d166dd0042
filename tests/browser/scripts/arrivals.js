// Of the resources with this in their address: what came over the network for each, in bytes.
(part) => Object.fromEntries(
  performance.getEntriesByType("resource").filter(({ name }) => name.includes(part)).map(({ name, transferSize }) => [name, transferSize]),
)
