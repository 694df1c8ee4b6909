// Texts that this browser tab keeps when a page is loaded again. A browser that stores nothing keeps none.

/** Keep a text under a name, or forget it if it is null. */
export function keep(name, text) {
  try {
    if (text === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, text);
  } catch {
    // The page works without it.
  }
}

/** Return the text that was kept under a name, or null. */
export function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}
