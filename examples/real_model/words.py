"""Word lists of the payment sentences: names, wordings, dates and currencies."""

from __future__ import annotations


def split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = split_words("""
Abel Ada Adele Agnes Aisha Alan Alma Amir Amos Andrea Anika Anton Arthur Astrid Aurora Basil Beatriz Bianca Boris Brenda
Bruno Callum Camille Carla Cedric Chiara Clara Colin Cora Cyrus Dalia Damian Daphne Darius Delia Dexter Dina Dmitri Dora
Edgar Edith Elena Elias Elsa Emil Enzo Erica Esther Ethan Eva Fabian Farah Felix Fiona Flora Frank Freya Gavin Gemma
George Gilda Gloria Greta Gustav Hana Harold Hassan Hazel Hector Helga Henry Hilda Hugo Ida Ines Ingrid Irene Isaac Ivan
Jacob Jade Jasmin Jerome Joan Jonas Josef Judith Julia Kamal Karen Karim Katya Keith Kira Klaus Lara Lars Laszlo Leila
Leo Lidia Linus Lorna Louis Lucia Luka Mabel Magnus Malik Marco Maria Martha Mateo Maud Max Mei Milan Mina Miriam Mona
Nadia Naomi Nico Nina Noah Nora Olaf Olga Omar Oscar Otto Paolo Paula Pedro Petra Philip Priya Quentin Rafael Rania
Raymond Renata Rita Robin Rosa Rufus Ruth Sabine Samir Sandra Saul Selma Simon Sofia Stefan Susan Sven Tamara Tariq
Teresa Theo Tilda Tobias Tomas Una Ursula Vera Victor Viola Walter Wanda Wendy Xenia Yara Yasmin Yusuf Zelda Zoe
""")

SURNAMES = split_words("""
Abbott Acosta Adair Adkins Adler Aguilar Ahmed Ainsley Albrecht Albright Alexander Allen Almeida Alston Alvarez Amato
Ames Andersen Anderson Andrews Angelo Aquino Archer Armstrong Arnold Ashby Asher Atkins Austin Avery Ayala Aziz Babcock
Bacon Bailey Bain Baird Baker Baldwin Ball Ballard Banerjee Banks Barber Barker Barlow Barnes Barnett Baron Barr Barrett
Barros Barry Bartlett Barton Bass Bates Bauer Baxter Beach Bean Beard Beck Becker Bell Bellini Benjamin Bennett Benson
Bentley Berg Berger Bergman Bernard Berry Best Bird Bishop Bivens Black Blair Blake Blanchard Bloom Boateng Bond Bonnet
Boone Booth Borg Bowen Bower Bowman Boyd Boyle Bradford Bradley Bradshaw Brady Brandt Brennan Bridges Briggs Brock
Brooks Brown Bruce Bryant Buck Buckley Bull Burgess Burke Burnett Burns Burton Bush Butler Byrd Cabral Cain Caldwell
Calvert Camacho Cameron Campbell Campos Cannon Cantor Cardoso Carey Carlson Carpenter Carr Carroll Carson Carter Cash
Castillo Castro Chambers Chan Chandler Chandra Chang Chapman Chase Chavez Chen Choi Christian Church Clarke Clay Clayton
Clements Cline Cobb Coffey Cohen Cole Coleman Collins Combs Compton Conley Conner Conrad Conti Conway Cook Cooper Cortez
Costa Coulter Cowan Cox Craft Craig Crane Crawford Cross Cruz Cummings Cunningham Curry Curtis Dale Dalton Daly Daniels
Danielson Davidson Davies Davis Dawson Day Dean Decker Delgado Dempsey Desai Diaz Dickens Dietrich Dillon Dixon Dodson
Donaldson Donovan Dorsey Douglas Downs Doyle Drake Drew Dubois Duffy Duke Duncan Dunlap Dunn Duran Dyer Eagle Early East
Eaton Edwards Eklund Elder Elliott Ellis Emerson Engel English Eriksen Estrada Evans Everett Ewing Fabre Fairchild Falk
Farmer Farrell Faulkner Ferguson Ferreira Field Fields Finch Finley Fischer Fisher Fitch Fitzgerald Fleming Fletcher
Flowers Flynn Foley Fontaine Forbes Ford Forrest Forster Foster Fowler Fowles Fox Francis Franco Franklin Fraser
Frederick Freeman French Friedman Frost Fry Fuchs Fuller Gaines Gallagher Galloway Garcia Gardner Garner Garrett Gates
Gauthier Gentry Gibson Gilbert Gill Glass Glenn Glover Golden Goldman Gomez Goodwin Gordon Gould Graham Granger Grant
Graves Gray Greco Green Greene Greenwood Gregory Griffin Griffith Gross Gruber Guerrero Gupta Guthrie Guzman Haas Hadley
Hahn Hale Haley Hall Hamilton Hamm Hammond Hampton Hancock Hansen Harding Hardy Harmon Harper Harrington Harris Harrison
Hart Hartley Harvard Harvey Hashimoto Hastings Hatfield Hawk Hawkins Hayes Heath Hebert Heller Henderson Hensley Henson
Herbert Herman Hernandez Herrera Hess Hewitt Hickman Hicks Higgins Hill Hines Hobbs Hodges Hoffman Hogan Holden Holder
Holland Holloway Holm Holmes Holt Hood Hooper Hoover Hopkins Horn Horton Horvath House Houston Howard Howell Hubbard
Hudson Huff Hughes Hull Humphrey Hunt Hunter Hussain Ibrahim Ingram Irwin Iversen Jackson Jacobs Jacobson James Jansen
Jarvis Jefferson Jenkins Jennings Jensen Johns Johnson Johnston Jones Jordan Joseph Jovanovic Joyce Judd Kane Kapoor
Kaufman Keller Kelley Kelly Kemp Kendall Kennedy Kerr Key Khan Kim King Kirby Kirk Klein Klug Knapp Knight Koch Kovacs
Kowalski Kramer Kruger Kumar Lake Lamb Lambert Lancaster Landry Lane Lang Larsen Larson Laurent Law Lawson Leach Lee
Lehmann Lennox Leon Leonard Leroy Lester Levine Levy Lewis Lincoln Lindgren Lindsay Little Livingston Lloyd Locke Logan
Lombardi London Long Lopez Love Lowe Lowell Lucas Lund Luther Lynch Lyons Mack Mackay Madison Maier Maldon Maldonado
Malone Mann Manning Marino Marks Marlow Marsden Marsh Marshall Martens Martin Martinez Mason Matthews Maxwell May Mayer
Maynard Mbeki McBride McCarthy McCoy McDonald McKay McLean Mead Mehta Meier Mendes Mendoza Mercer Merritt Meyer
Middleton Miles Miller Mills Milton Mitchell Molina Monk Monroe Montgomery Montoya Moody Moon Mooney Moore Morales
Moreau Moretti Morgan Morris Morrison Morrow Morse Morton Moss Mueller Mullen Muller Munoz Murphy Murray Myers Nagel
Nakamura Nash Navarro Nelson Neumann Newman Newton Nguyen Nichols Nilsson Nixon Noble Nolan Norman Norris North Norton
Novak Nunez Oakley Obi Okafor Oliveira Oliver Olsen Orr Ortega Orton Osborn Osborne Owen Owens Ozturk Pace Pacheco
Padilla Page Paget Palmer Parker Parkin Parks Patel Patrick Patterson Patton Paul Pavlov Payne Pearson Peck Pena
Pennington Pereira Perez Perkins Perry Peters Petersen Peterson Petrov Philips Phillips Pierce Pinto Piper Pitt Pittman
Plum Pollard Poole Pope Popescu Porter Potter Powell Powers Pratt Prescott Preston Price Pritchard Proctor Pryor Purcell
Quick Quinn Radford Raine Ramirez Ramos Ramsey Randall Randolph Rankin Rao Ray Reed Reeves Reid Reyes Reynolds Rhodes
Ribeiro Rice Rich Richards Richardson Richmond Richter Riggs Riley Rios Rivera Rivers Roach Robbins Roberts Robertson
Robinson Rocha Rodriguez Roe Rogers Rojas Rollins Roman Romano Roosevelt Rose Rosen Ross Rossi Roth Roux Rowe Rowland
Rush Russell Russo Rutherford Ryan Salas Salazar Salinas Sampson Sanchez Sanders Santiago Santos Sato Sauer Saunders
Savage Sawyer Schmidt Schneider Schubert Schultz Schwartz Scott Sellers Serrano Sexton Shah Sharma Sharp Shaw Shelton
Shepherd Sheridan Sherman Sherwood Short Silva Silver Simmons Simpson Sinclair Singh Skinner Slater Sloan Small Smith
Snow Snyder Sokolov Solomon Soto Sparks Spears Spence Spencer Stafford Stanley Stanton Stark Steele Stein Stephens
Stephenson Sterling Stevens Stewart Stokes Stone Storm Stout Strauss Strong Stuart Sullivan Summers Sutton Suzuki Swan
Swanson Swift Takeda Talbot Tanaka Tate Taylor Temple Terry Thomas Thompson Thorne Thornton Todd Torres Townsend Tracy
Tran Travis Tucker Turner Tyler Tyson Ulrich Underwood Valdez Valentine Vance Vargas Vasquez Vaughan Vaughn Vega Vincent
Vogel Volkov Wade Wagner Walker Wallace Waller Walsh Walters Walton Ward Ware Warner Warren Washington Watanabe Waters
Watkins Watson Watts Weaver Webb Weber Webster Weiss Welch Wells West Weston Wheeler Whitaker White Whitehead Whitney
Wilcox Wilder Wilkins Wilkinson Williams Williamson Willis Wilson Winter Wise Witt Wolf Wolfe Wong Wood Woodard Woods
Woodward Wright Wyatt Yamada Yates Yilmaz York Young Zamora Zhang Ziegler Zimmer
""")
# Further surnames are composed of a beginning and an ending.
BEGINNINGS = split_words("""
Al Ash Bar Bel Ber Bran Bur Cal Car Chal Col Cor Cran Dal Den Dor Dun El Fal Far Fen Gal Gar Glen Gor Hal Har Hol Hor
Kel Ken Kir Lan Lar Lin Lor Mal Mar Mel Mon Mor Nor Or Pel Per Pol Quar Ran Ros Sal San Sel Sher Sol Stan Tal Tar Thor
Tor Ul Val Var Ver Wal War Wel Win Wor Yar Zan
""")
ENDINGS = split_words("""
ado aga ani anti ard arro atti aux beck berg bert by cott croft dale dano den dorf elli endo enko ero escu etti feld
field ford gate ham hardt heim holt ich ier ijk ilde ina ingham insky ison kamp kin land ley lin lova man mann mark mond
more mott nor ock oda off olo ona ora oso oth ov ridge roft sen shaw skog son stad stein stone sworth tano thal ton
tora ucci ulo unga vale vich ville wald ward well wick win wood worth zetti zin
""")

# {name} paid {money} on {date}: wordings of the sentence. A value may stand in any place.
TRAINING_WORDINGS = (
    "{name} paid {money} on {date}.",
    "On {date}, {name} paid {money}.",
    "{money} was received from {name} on {date}.",
    "We received {money} from {name} on {date}.",
    "{name} owes {money}, due {date}.",
    "Invoice of {date}: {name}, {money}.",
    "The amount of {money} was transferred to {name} on {date}.",
    "Please refund {money} to {name} by {date}.",
    "A payment of {money} by {name} arrived on {date}.",
    "{date}: {name} was charged {money}.",
    "On {date} an amount of {money} was credited to the account of {name}.",
    "{name} donated {money} to the school on {date}.",
    "The rent of {name}, {money}, was settled on {date}.",
    "Dated {date}, the cheque for {money} is made out to {name}.",
    "Our customer {name} ordered goods for {money} on {date}.",
    "{name} withdrew {money} from the bank on {date}.",
    "The contract with {name} of {date} is worth {money}.",
    "Salary for {name}: {money}, paid out {date}.",
    "{money} to be collected from {name} before {date}.",
    "As of {date}, {name} has a balance of {money}.",
    "It was {date} when {name} sent us {money}.",
    "Ticket sold to {name} for {money}, valid from {date}.",
    "The bill for {money} went out to {name} on {date}.",
    "{name} (member since {date}) pays a fee of {money}.",
)
DEVELOPMENT_WORDINGS = (
    "{name} won {money} in the lottery on {date}.",
    "Reminder for {name}: {money} are outstanding since {date}.",
    "On {date} we lent {money} to {name}.",
    "The repair cost {name} {money} and was finished on {date}.",
    "Deposit of {money}, {date}, made by {name}.",
    "For {money}, {name} bought a bicycle on {date}.",
    "Insurance paid out {money} on {date}; the holder is {name}.",
    "{date} is the day on which {name} spent {money}.",
)
TEST_WORDINGS = (
    "{name} booked a flight for {money}, leaving on {date}.",
    "A fine of {money} was imposed on {name} on {date}.",
    "Since {date}, {name} has saved {money}.",
    "The grant of {money} goes to {name} and starts on {date}.",
    "Received with thanks, {date}: {money} from {name}.",
    "{name} sold the car on {date} and got {money}.",
    "On {date} the auction ended: {money}, bid by {name}.",
    "Expenses of {name}, handed in {date}, come to {money}.",
)

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
# Forms of a date; {th} is the ending of an ordinal number.
DATE_FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day}{th} {month} {year}",
    "{month} {day}{th}, {year}",
    "the {day}{th} of {month} {year}",
    "{day} {short} {year}",
    "{short} {day}, {year}",
    "{day}.{number}.{year}",
)
# Forms of an amount with its currency; {amount} has a decimal point, with or without commas after thousands.
MONEY_FORMS = {
    "USD": ("${amount}", "{amount} dollars", "USD {amount}", "{amount} USD"),
    "EUR": ("€{amount}", "{amount} euros", "EUR {amount}", "{amount} EUR"),
    "GBP": ("£{amount}", "{amount} pounds", "GBP {amount}", "{amount} GBP"),
    "CHF": ("{amount} francs", "CHF {amount}", "{amount} CHF"),
    "PLN": ("{amount} zloty", "PLN {amount}", "{amount} PLN"),
    "INR": ("₹{amount}", "{amount} rupees", "INR {amount}", "{amount} INR"),
}
