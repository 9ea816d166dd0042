// The query of an address that holds a run's settings, beside what else it held.
export const query = (search, link) => {
  const rest = new URLSearchParams(search);
  rest.delete("run");
  return `?${rest.size ? `${rest}&` : ""}run=${link}`;
};
