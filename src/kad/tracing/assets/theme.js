// Light, dark, or as the system is.
kad.theme = (button) => {
  const [names, signs] = [["auto", "light", "dark"], {auto: "◐", light: "☀", dark: "☾"}];
  let theme = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = signs[theme];
    const said = `Color theme: ${theme === "auto" ? "as the system" : theme}`;
    button.setAttribute("aria-label", said);
    button.title = said;
  };
  button.addEventListener("click", () => { theme = names[(names.indexOf(theme) + 1) % names.length]; apply(); });
  apply();
};
